//! A pickle machine that builds values and executes nothing.
//!
//! candle's machine is not used on untrusted files: it copies what the memo holds, so a few bytes
//! can ask for any amount of memory, and it frees nested values recursively, so deep nesting
//! overflows the stack. Both end the process. Here values live in one arena and refer to each
//! other by index: no instruction copies a value, cycles are harmless, and nothing recurses.
//!
//! A reader that copies what it finds here brings the danger back: one memoised string can name
//! every entry of a dict. So whoever copies bounds the length and the number of the copies.

use std::collections::HashMap;

use super::listing::MAX_NAME_BYTES;

/// A value's index in the arena; [`MAX_ITEMS`] keeps it small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(u32);

/// A value, as far as a state dict needs it.
#[derive(Debug)]
pub(crate) enum Value {
    /// Something that no tensor is described by: a number with a fraction, `None`, a boolean.
    Other,
    Int(i64),
    Str(String),
    /// A Python name; never looked up. Both parts are strings.
    Class {
        module: Id,
        name: Id,
    },
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A call that unpickling would make; never made.
    Call {
        callable: Id,
        args: Id,
    },
    /// A reference to data outside of the pickle.
    Persistent(Id),
}

/// The most values, references to values, marks and memo entries that a pickle may make: a bound
/// on memory far above any state dict, which makes some thirty for each tensor.
const MAX_ITEMS: usize = 5_000_000;

/// Everything that a pickle has built.
#[derive(Debug)]
pub(crate) struct Pickle {
    arena: Vec<Value>,
    /// The value that the pickle stands for.
    pub(crate) root: Id,
    /// How many bytes it took.
    pub(crate) n_bytes: usize,
}

impl Pickle {
    /// Runs the pickle at the start of `bytes`, or says what is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut machine = Machine {
            bytes,
            ..Machine::default()
        };
        loop {
            let at = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => {
                    return Ok(Self {
                        arena: machine.arena,
                        root,
                        n_bytes: machine.at,
                    });
                }
                Err(what) => return Err(format!("{what} at byte {at} of the pickle")),
            }
        }
    }

    /// The value at an index.
    pub(crate) fn value(&self, id: Id) -> &Value {
        &self.arena[id.0 as usize]
    }

    /// The module and name of a class.
    pub(crate) fn class(&self, id: Id) -> Option<(&str, &str)> {
        class(&self.arena, id)
    }
}

/// The state of a run.
#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    arena: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// How much of [`MAX_ITEMS`] is spent; what was dropped again still counts.
    n_items: usize,
}

type Step<T> = Result<T, String>;

impl Machine<'_> {
    /// Executes one instruction; returns the result at the last one.
    fn step(&mut self) -> Step<Option<Id>> {
        let [op] = self.take()?;
        match op {
            b'.' => return self.pop().map(Some),
            0x80 => self.skip(1)?, // PROTO
            0x95 => self.skip(8)?, // FRAME
            b'(' => self.mark()?,
            b'0' => drop(self.pop()?),
            b'q' | b'r' | b'h' | b'j' | 0x94 => self.memo_op(op)?,
            b'a' | b'e' | b's' | b'u' | b'b' => self.fill_op(op)?,
            b'c' | 0x93 | b'R' | 0x81 | b'Q' => self.call_op(op)?,
            b')' | b't' | 0x85..=0x87 | b']' | b'l' | b'}' | b'd' => self.container_op(op)?,
            _ => self.scalar_op(op)?,
        }
        Ok(None)
    }

    /// Numbers, strings and constants.
    fn scalar_op(&mut self, op: u8) -> Step<()> {
        let value = match op {
            b'N' | 0x88 | 0x89 => Value::Other,
            b'G' => {
                self.skip(8)?;
                Value::Other
            }
            b'K' => Value::Int(u8::from_le_bytes(self.take()?).into()),
            b'M' => Value::Int(u16::from_le_bytes(self.take()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(self.take()?).into()),
            0x8a => self.long()?,
            b'X' | b'T' => {
                let len = u32::from_le_bytes(self.take()?) as usize;
                self.string(len)?
            }
            0x8c | b'U' => {
                let [len] = self.take()?;
                self.string(len.into())?
            }
            0x8d => {
                let len = u64::from_le_bytes(self.take()?);
                self.string(usize::try_from(len).unwrap_or(usize::MAX))?
            }
            _ => return Err(format!("instruction {op:#04x}, which no state dict needs,")),
        };
        self.push(value)
    }

    fn memo_op(&mut self, op: u8) -> Step<()> {
        let idx = match op {
            b'q' | b'h' => self.take::<1>()?[0].into(),
            b'r' | b'j' => u32::from_le_bytes(self.take()?),
            _ => self.memo.len() as u32,
        };
        if matches!(op, b'h' | b'j') {
            let id = *self
                .memo
                .get(&idx)
                .ok_or_else(|| format!("no memo {idx}"))?;
            self.spend()?;
            self.stack.push(id);
        } else {
            self.spend()?;
            self.memo.insert(idx, self.top()?);
        }
        Ok(())
    }

    /// Additions to the container below on the stack.
    fn fill_op(&mut self, op: u8) -> Step<()> {
        let values = match op {
            b'a' | b'b' => vec![self.pop()?],
            b's' => self.pop_n(2)?,
            _ => self.pop_to_mark()?,
        };
        let Id(container) = self.top()?;
        match (op, &mut self.arena[container as usize]) {
            // The state of an object (a dict's `_metadata`) describes no tensor.
            (b'b', _) => {}
            (b's' | b'u', Value::Dict(pairs)) => pairs.extend(pairs_of(&values)?),
            (b'a' | b'e', Value::List(items)) => items.extend(values),
            _ => return Err("items for what is no container".into()),
        }
        Ok(())
    }

    fn container_op(&mut self, op: u8) -> Step<()> {
        let value = match op {
            b')' => Value::Tuple(Vec::new()),
            b't' => Value::Tuple(self.pop_to_mark()?),
            b']' => Value::List(Vec::new()),
            b'l' => Value::List(self.pop_to_mark()?),
            b'}' => Value::Dict(Vec::new()),
            b'd' => {
                let values = self.pop_to_mark()?;
                Value::Dict(pairs_of(&values)?.collect())
            }
            _ => Value::Tuple(self.pop_n(usize::from(op) - 0x84)?),
        };
        self.push(value)
    }

    /// Names, calls, and references to outside data.
    fn call_op(&mut self, op: u8) -> Step<()> {
        let value = match op {
            b'c' => Value::Class {
                module: self.line()?,
                name: self.line()?,
            },
            0x93 => {
                let name = self.pop_name()?;
                let module = self.pop_name()?;
                Value::Class { module, name }
            }
            b'Q' => Value::Persistent(self.pop()?),
            _ => {
                let args = self.pop()?;
                self.call(args)?
            }
        };
        self.push(value)
    }

    /// The result of calling what is on top of the stack; only dicts are ever made.
    fn call(&mut self, args: Id) -> Step<Value> {
        let callable = self.pop()?;
        match class(&self.arena, callable) {
            Some(("collections", "OrderedDict" | "defaultdict")) => Ok(Value::Dict(Vec::new())),
            _ => Ok(Value::Call { callable, args }),
        }
    }

    /// An integer of any length; one of more than 64 bits is no size or offset.
    fn long(&mut self) -> Step<Value> {
        let [len] = self.take()?;
        let digits = self.take_slice(len.into())?;
        let Some(&last) = digits.last() else {
            return Ok(Value::Int(0));
        };
        if digits.len() > 8 {
            return Ok(Value::Other);
        }
        let fill = if last & 0x80 == 0 { 0 } else { 0xff };
        let mut word = [fill; 8];
        word[..digits.len()].copy_from_slice(digits);
        Ok(Value::Int(i64::from_le_bytes(word)))
    }

    fn string(&mut self, len: usize) -> Step<Value> {
        let bytes = self.take_slice(len)?;
        Ok(Value::Str(String::from_utf8_lossy(bytes).into_owned()))
    }

    /// The rest of a line of the pickle, as a name.
    fn line(&mut self) -> Step<Id> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&b| b == b'\n').ok_or("end of data")?;
        check_name(len)?;
        let line = self.take_slice(len + 1)?;
        let text = String::from_utf8_lossy(&line[..len]);
        let text = text.trim_end_matches('\r').to_owned();
        self.add(Value::Str(text))
    }

    fn take<const N: usize>(&mut self) -> Step<[u8; N]> {
        let bytes = self.bytes[self.at..].first_chunk().ok_or("end of data")?;
        self.at += N;
        Ok(*bytes)
    }

    fn take_slice(&mut self, len: usize) -> Step<&[u8]> {
        let bytes = self.bytes[self.at..].get(..len).ok_or("end of data")?;
        self.at += len;
        Ok(bytes)
    }

    fn skip(&mut self, len: usize) -> Step<()> {
        self.take_slice(len).map(drop)
    }

    /// Counts one more thing that takes memory.
    fn spend(&mut self) -> Step<()> {
        self.n_items += 1;
        if self.n_items > MAX_ITEMS {
            return Err(format!(
                "more than {MAX_ITEMS} values, marks and memo entries"
            ));
        }
        Ok(())
    }

    fn mark(&mut self) -> Step<()> {
        self.spend()?;
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// Puts a value into the arena alone.
    fn add(&mut self, value: Value) -> Step<Id> {
        self.spend()?;
        let id = Id(self.arena.len() as u32);
        self.arena.push(value);
        Ok(id)
    }

    /// Puts a value into the arena and onto the stack.
    fn push(&mut self, value: Value) -> Step<()> {
        let id = self.add(value)?;
        self.stack.push(id);
        Ok(())
    }

    fn top(&self) -> Step<Id> {
        self.stack
            .last()
            .copied()
            .ok_or_else(|| "an empty stack".into())
    }

    fn pop(&mut self) -> Step<Id> {
        self.stack.pop().ok_or_else(|| "an empty stack".into())
    }

    /// A string of a length that a name may have.
    fn pop_name(&mut self) -> Step<Id> {
        let id = self.pop()?;
        match &self.arena[id.0 as usize] {
            Value::Str(text) => check_name(text.len()).map(|()| id),
            _ => Err("a name that is not a string".into()),
        }
    }

    fn pop_n(&mut self, n: usize) -> Step<Vec<Id>> {
        let start = self.stack.len().checked_sub(n).ok_or("an empty stack")?;
        Ok(self.stack.split_off(start))
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Id>> {
        let start = self.marks.pop().ok_or("no mark")?;
        if start > self.stack.len() {
            return Err("a mark above the stack".into());
        }
        Ok(self.stack.split_off(start))
    }
}

/// Refuses the name of a class that is longer than any.
fn check_name(len: usize) -> Step<()> {
    if len > MAX_NAME_BYTES {
        return Err(format!(
            "a name of {len} bytes where {MAX_NAME_BYTES} is the most"
        ));
    }
    Ok(())
}

/// The module and name of a class.
fn class(arena: &[Value], id: Id) -> Option<(&str, &str)> {
    let text = |id: Id| match &arena[id.0 as usize] {
        Value::Str(text) => Some(text.as_str()),
        _ => None,
    };
    match arena[id.0 as usize] {
        Value::Class { module, name } => Some((text(module)?, text(name)?)),
        _ => None,
    }
}

/// Keys and values that alternate.
fn pairs_of(values: &[Id]) -> Step<impl Iterator<Item = (Id, Id)>> {
    let (pairs, rest) = values.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("a key without a value".into());
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)))
}

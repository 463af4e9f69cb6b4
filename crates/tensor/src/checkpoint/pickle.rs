//! A pickle machine that builds values and executes nothing.
//!
//! candle's machine is not used on untrusted files: it copies what the memo holds, so a few bytes
//! can ask for any amount of memory, and it frees nested values recursively, so deep nesting
//! overflows the stack. Both end the process. Here values live in one arena and refer to each
//! other by index: sharing is free, cycles are harmless, and nothing recurses.

use std::collections::HashMap;

/// A value's index in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(usize);

/// A value, as far as a state dict needs it.
#[derive(Debug)]
pub(crate) enum Value {
    /// Something that no tensor is described by: a number with a fraction, `None`, a boolean.
    Other,
    Int(i64),
    Str(String),
    /// A Python name; never looked up.
    Class {
        module: String,
        name: String,
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

/// The most values that a pickle may build: a bound on memory far above any state dict.
const MAX_VALUES: usize = 10_000_000;

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
        &self.arena[id.0]
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
    memo: HashMap<usize, Id>,
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
            b'(' => self.marks.push(self.stack.len()),
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
            b'r' | b'j' => u32::from_le_bytes(self.take()?) as usize,
            _ => self.memo.len(),
        };
        if matches!(op, b'h' | b'j') {
            let id = *self
                .memo
                .get(&idx)
                .ok_or_else(|| format!("no memo {idx}"))?;
            self.stack.push(id);
        } else {
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
        match (op, &mut self.arena[container]) {
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
                let name = self.pop_str()?;
                Value::Class {
                    module: self.pop_str()?,
                    name,
                }
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
        match &self.arena[callable.0] {
            Value::Class { module, name }
                if module == "collections" && (name == "OrderedDict" || name == "defaultdict") =>
            {
                Ok(Value::Dict(Vec::new()))
            }
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

    /// The rest of a line of the pickle.
    fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&b| b == b'\n').ok_or("end of data")?;
        let line = self.take_slice(len + 1)?;
        Ok(String::from_utf8_lossy(&line[..len])
            .trim_end_matches('\r')
            .to_owned())
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

    fn push(&mut self, value: Value) -> Step<()> {
        if self.arena.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        self.stack.push(Id(self.arena.len()));
        self.arena.push(value);
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

    fn pop_str(&mut self) -> Step<String> {
        let id = self.pop()?;
        match &self.arena[id.0] {
            Value::Str(text) => Ok(text.clone()),
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

/// Keys and values that alternate.
fn pairs_of(values: &[Id]) -> Step<impl Iterator<Item = (Id, Id)>> {
    let (pairs, rest) = values.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("a key without a value".into());
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)))
}

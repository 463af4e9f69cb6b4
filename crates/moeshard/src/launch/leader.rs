//! Where rank 0 waits for the others, by hand or by a list of machines.

use crate::arg_error::ArgError;

/// Where rank 0 waits if nobody says anything else: next to the port of HTTP.
pub const LEADER_PORT: u16 = 3001;

/// What `--leader` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Name or address of rank 0's machine.
    pub host: String,
    /// Its port, if that is named.
    pub port: Option<u16>,
}

impl Leader {
    /// Reads `HOST` or `HOST:PORT`; an IPv6 address with a port is in brackets.
    ///
    /// # Errors
    /// If it is neither.
    pub fn read(text: &str) -> Result<Self, ArgError> {
        let unknown = || ArgError::Unknown {
            flag: "--leader",
            expected: "the HOST or HOST:PORT of rank 0, as node-1:3001 or [::1]:3001",
            found: text.to_owned(),
        };
        let trimmed = text.trim();
        let (host, port) = match trimmed.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or_else(unknown)?;
                let port = rest.strip_prefix(':');
                if port.is_none() && !rest.is_empty() {
                    return Err(unknown());
                }
                (host, port)
            }
            None => match trimmed.split_once(':') {
                // More than one colon: an address without a port.
                Some((_, rest)) if rest.contains(':') => (trimmed, None),
                Some((host, port)) => (host, Some(port)),
                None => (trimmed, None),
            },
        };
        let is_part = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
        if host.is_empty() || !host.chars().all(is_part) {
            return Err(unknown());
        }
        let port = port.map(|port| match port.parse() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(unknown()),
        });
        Ok(Self {
            host: host.to_owned(),
            port: port.transpose()?,
        })
    }
}

/// The first machine of a list as Slurm writes it: `node[08-11,20],login` begins with `node08`.
pub(super) fn first_host(list: &str) -> Option<String> {
    let list = list.trim();
    let (name, rest) = match list.find(['[', ',']) {
        None => (list, ""),
        Some(at) => list.split_at(at),
    };
    let Some(numbers) = rest.strip_prefix('[') else {
        return (!name.is_empty()).then(|| name.to_owned());
    };
    let (numbers, rest) = numbers.split_once(']')?;
    let number = numbers.split([',', '-']).next()?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // What follows the brackets belongs to every name, and may have brackets of its own.
    let own = rest.split(',').next().unwrap_or_default();
    let tail = match own.is_empty() {
        true => String::new(),
        false => first_host(rest)?,
    };
    Some(format!("{name}{number}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_a_host_with_or_without_a_port() {
        let check = |text: &str, host: &str, port: Option<u16>| {
            let host = host.to_owned();
            assert_eq!(Leader::read(text), Ok(Leader { host, port }), "{text}");
        };
        check("node-1", "node-1", None);
        check(" node-1.cluster:3001 ", "node-1.cluster", Some(3001));
        check("10.0.0.1:9", "10.0.0.1", Some(9));
        check("::1", "::1", None);
        check("[::1]", "::1", None);
        check("[fe80::1%eth0]:65535", "fe80::1%eth0", Some(65535));
    }

    #[test]
    fn a_leader_without_sense_is_refused() {
        let wrong = [
            "", ":1", "a:", "a:0", "a:65536", "a:b", "[::1", "[::1]x", "[]:1", "a b", "a/b:1",
        ];
        for text in wrong {
            let error = Leader::read(text).expect_err(text).to_string();
            assert!(error.starts_with("--leader must be the HOST"), "{error}");
        }
    }

    #[test]
    fn the_first_machine_of_a_list_is_found() {
        let check = |list: &str, expect: Option<&str>| {
            assert_eq!(first_host(list).as_deref(), expect, "{list}");
        };
        check("node7", Some("node7"));
        check("node7,node8", Some("node7"));
        check("node[08-11,20],login", Some("node08"));
        check("node[3,5]", Some("node3"));
        check("rack[1-2]-node[04-07]", Some("rack1-node04"));
        check("gpu[1-2].cluster,other[3]", Some("gpu1.cluster"));
        check("a-b,c[1]", Some("a-b"));
        check("", None);
        check("node[", None);
        check("node[]", None);
        check("node[x-y]", None);
        check("node[1]b[", None);
    }
}

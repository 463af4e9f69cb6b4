use std::net::SocketAddr;
use std::str::FromStr;

use hyper::Uri;

use crate::error::Error;

/// Route that is loaded when the URL names none.
const DEFAULT_ROUTE: &str = "/embed";

/// A checked `http://` URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// `host[:port]`, as the Host header has it.
    authority: String,
    /// `host:port`, as the resolver takes it.
    address: String,
    /// Path and query.
    route: String,
}

impl FromStr for Url {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::Url {
            url: text.to_owned(),
            reason: reason.to_owned(),
        };
        let uri: Uri = text
            .parse()
            .map_err(|error| refuse(&format!("is invalid: {error}")))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(refuse("is https, only http can be loaded")),
            _ => return Err(refuse("must begin with http://")),
        }
        let authority = uri.authority().ok_or_else(|| refuse("has no host"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("has a user name, which is not supported"));
        }
        let route = match uri.path_and_query().map_or("/", |route| route.as_str()) {
            "/" => DEFAULT_ROUTE,
            route => route,
        };
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self {
            authority: authority.as_str().to_owned(),
            address: format!("{}:{port}", authority.host()),
            route: route.to_owned(),
        })
    }
}

/// Where requests go: a URL whose host has been resolved, once, before anything is timed.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) authority: String,
    pub(crate) route: String,
    /// Tried in order by every new connection.
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Target {
    /// Looks up the host of `url`.
    pub(crate) async fn resolve(url: &Url) -> Result<Self, Error> {
        let addresses = tokio::net::lookup_host(&url.address)
            .await
            .map_err(|source| Error::Resolve {
                host: url.address.clone(),
                source,
            })?
            .collect();
        Ok(Self {
            authority: url.authority.clone(),
            route: url.route.clone(),
            addresses,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, String, String) {
        let url: Url = text.parse().unwrap();
        (url.authority, url.address, url.route)
    }

    fn strings(a: &str, b: &str, c: &str) -> (String, String, String) {
        (a.to_owned(), b.to_owned(), c.to_owned())
    }

    #[test]
    fn the_route_defaults_to_embed_and_the_port_to_80() {
        let local = "127.0.0.1:3000";
        assert_eq!(
            parts("http://127.0.0.1:3000"),
            strings(local, local, "/embed")
        );
        assert_eq!(
            parts("http://127.0.0.1:3000/"),
            strings(local, local, "/embed")
        );
        assert_eq!(parts("http://h/v/e?x=1"), strings("h", "h:80", "/v/e?x=1"));
        assert_eq!(
            parts("http://[::1]:9"),
            strings("[::1]:9", "[::1]:9", "/embed")
        );
    }

    #[test]
    fn other_urls_are_refused() {
        for (url, reason) in [
            ("https://h", "only http"),
            ("127.0.0.1:3000", "must begin with http://"),
            ("ftp://h/", "must begin with http://"),
            ("http://u:p@h/", "user name"),
            ("http://", "is invalid"),
        ] {
            let message = url.parse::<Url>().unwrap_err().to_string();
            assert!(message.contains(reason), "{url}: {message}");
        }
    }
}

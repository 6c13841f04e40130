//! Chooses the HTTP proxy of a request from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in upper or lower
//! case.
//!
//! There is no standard. This follows Go's clients, such as kubectl, and curl where curl understands more.

use std::net::IpAddr;

use http::Uri;

/// The value of a proxy variable or of `proxy-url` cannot be used. The message does not repeat it: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: not the URL of an HTTP proxy; write http://HOST:PORT or https://HOST:PORT")]
pub struct InvalidProxy(String);

/// The proxy for `url`, if any. `variable` reads the environment.
///
/// # Errors
/// If the proxy cannot be used.
pub fn proxy_for(url: &Uri, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Uri>, InvalidProxy> {
    let either = |name: &str| {
        let names = [name.to_owned(), name.to_ascii_lowercase()];
        names.into_iter().find_map(|name| Some((variable(&name).filter(|value| !value.trim().is_empty())?, name)))
    };
    let own = if url.scheme_str() == Some("http") { "HTTP_PROXY" } else { "HTTPS_PROXY" };
    let Some((value, name)) = either(own).or_else(|| either("ALL_PROXY")) else { return Ok(None) };
    if either("NO_PROXY").is_some_and(|(exceptions, _)| is_excepted(url, &exceptions)) {
        return Ok(None);
    }
    proxy(&value, &name).map(Some)
}

/// The proxy in `value`, the value of `name`. Without a scheme, `http://` is assumed.
///
/// # Errors
/// If it is not the URL of an HTTP proxy.
pub fn proxy(value: &str, name: &str) -> Result<Uri, InvalidProxy> {
    let value = value.trim();
    let whole = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
    let uri: Option<Uri> = whole.parse().ok();
    let is_usable = |uri: &Uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    };
    uri.filter(is_usable).ok_or_else(|| InvalidProxy(name.to_owned()))
}

/// Whether one of the `exceptions` names the host of `url`.
fn is_excepted(url: &Uri, exceptions: &str) -> bool {
    let Some(host) = url.host() else { return false };
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
    let host = without_brackets(host).trim_end_matches('.').to_ascii_lowercase();
    let entries = exceptions.split(|character: char| character == ',' || character.is_whitespace());
    entries.filter(|entry| !entry.is_empty()).any(|entry| covers(&entry.to_ascii_lowercase(), &host, port))
}

/// Whether an entry of `NO_PROXY` names this host. An entry is `*`, an address, a network, a name with its subdomains, or
/// subdomains alone (`.example.com`, `*.example.com`). All except networks may have a port.
fn covers(entry: &str, host: &str, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    let address = |text: &str| without_brackets(text).parse().ok().map(|address: IpAddr| address.to_canonical());
    if let Some((network, length)) = entry.split_once('/') {
        let is_in = || Some(is_in(address(network)?, length.parse().ok()?, address(host)?));
        return is_in().unwrap_or(false);
    }
    if let Some(entry) = address(entry) {
        return address(host) == Some(entry);
    }
    let (name, entry_port) = match entry.rsplit_once(':') {
        Some((name, digits)) => match digits.parse() {
            Ok(entry_port) => (name, Some(entry_port)),
            Err(_) => return false,
        },
        None => (entry, None),
    };
    if entry_port.is_some_and(|entry_port: u16| entry_port != port) {
        return false;
    }
    if let Some(entry) = address(name) {
        return address(host) == Some(entry);
    }
    if address(host).is_some() {
        return false;
    }
    let name = name.trim_end_matches('.');
    match name.strip_prefix("*.").or_else(|| name.strip_prefix('.')) {
        Some(parent) => is_below(host, parent),
        None => host == name || is_below(host, name),
    }
}

fn is_below(host: &str, parent: &str) -> bool {
    !parent.is_empty() && host.strip_suffix(parent).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

/// Whether an address is in a network. Host bits of the network are ignored.
fn is_in(network: IpAddr, length: u32, address: IpAddr) -> bool {
    let differing = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => (network.to_bits() ^ address.to_bits()).leading_zeros(),
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits() ^ address.to_bits()).leading_zeros(),
        _ => return false,
    };
    let bits = if network.is_ipv4() { 32 } else { 128 };
    length <= bits && differing >= length
}

fn without_brackets(text: &str) -> &str {
    text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(url: &str, variables: &[(&str, &str)]) -> Result<Option<String>, InvalidProxy> {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        proxy_for(&url.parse().unwrap(), variable).map(|proxy| proxy.map(|uri| uri.to_string()))
    }

    #[test]
    fn the_variable_is_that_of_the_scheme_then_that_of_all() {
        let (https, http, all) =
            (("HTTPS_PROXY", "http://a:1"), ("HTTP_PROXY", "http://b:2"), ("ALL_PROXY", "http://c:3"));
        for (url, variables, expected) in [
            ("https://k8s", &[][..], None),
            ("https://k8s", &[https, http, all], Some("http://a:1/")),
            ("http://k8s", &[https, http, all], Some("http://b:2/")),
            ("https://k8s", &[http, all], Some("http://c:3/")),
            ("https://k8s", &[http], None),
            ("https://k8s", &[("https_proxy", "http://d:4")], Some("http://d:4/")),
            ("https://k8s", &[("all_proxy", "http://d:4")], Some("http://d:4/")),
            ("https://k8s", &[("https_proxy", "http://d:4"), https], Some("http://a:1/")),
            ("https://k8s", &[("HTTPS_PROXY", ""), ("https_proxy", "http://d:4")], Some("http://d:4/")),
            ("https://k8s", &[("HTTPS_PROXY", " ")], None),
            ("https://k8s", &[("HTTPS_PROXY", "d:4")], Some("http://d:4/")),
            ("https://k8s", &[("HTTPS_PROXY", "https://d")], Some("https://d/")),
            ("https://k8s", &[https, ("NO_PROXY", "k8s")], None),
            ("https://k8s", &[https, ("no_proxy", "k8s")], None),
            ("https://k8s", &[https, ("no_proxy", "k8s"), ("NO_PROXY", "other")], Some("http://a:1/")),
            ("https://k8s", &[https, ("no_proxy", "k8s"), ("NO_PROXY", "")], None),
        ] {
            assert_eq!(chosen(url, variables).unwrap().as_deref(), expected, "{url} {variables:?}");
        }
    }

    #[test]
    fn what_is_no_http_proxy_is_named_without_its_password() {
        for value in ["socks5://eve:secret@d:4", "http://", "http://eve:secret@", "ftp://d", "http://eve:secret@d:4:5"]
        {
            let error = chosen("https://k8s", &[("https_proxy", value)]).unwrap_err().to_string();
            assert!(error.starts_with("https_proxy: ") && !error.contains("secret"), "{value}: {error}");
            assert_eq!(chosen("https://k8s", &[("https_proxy", value), ("NO_PROXY", "*")]), Ok(None), "{value}");
        }
    }

    #[test]
    fn exceptions_are_understood_in_their_usual_spellings() {
        let name = "https://kubernetes.default.svc";
        let (v4, v6) = ("https://10.96.0.1:6443", "https://[fd00:10:96::1]:6443");
        for (url, exceptions, is_excepted) in [
            (name, "*", true),
            (name, "a, *", true),
            (name, "kubernetes.default.svc", true),
            (name, "KUBERNETES.default.SVC", true),
            (name, "kubernetes.default.svc.", true),
            (name, "default.svc", true),
            (name, "svc", true),
            (name, ".svc", true),
            (name, "*.svc", true),
            (name, ".default.svc", true),
            (name, ".kubernetes.default.svc", false),
            (name, "*.kubernetes.default.svc", false),
            (name, "vc", false),
            (name, "ubernetes.default.svc", false),
            (name, "kubernetes", false),
            (name, "kubernetes.default.svc.cluster.local", false),
            (name, "localhost,127.0.0.1,.svc,.cluster.local", true),
            (name, " localhost ,\t.svc ", true),
            (name, "localhost .svc", true),
            (name, ",,.svc,", true),
            (name, ",", false),
            (name, ".", false),
            (name, "*.", false),
            (name, "kubernetes.default.svc:443", true),
            (name, ".svc:443", true),
            (name, "kubernetes.default.svc:6443", false),
            (name, "kubernetes.default.svc:https", false),
            ("https://kubernetes.default.svc:6443", "kubernetes.default.svc:6443", true),
            ("http://kubernetes.default.svc", "kubernetes.default.svc:80", true),
            ("https://KUBERNETES.default.svc.", ".svc", true),
            (v4, "10.96.0.1", true),
            (v4, "10.96.0.1:6443", true),
            (v4, "10.96.0.1:443", false),
            (v4, "10.96.0.2", false),
            (v4, "10.96.0.0/12", true),
            (v4, "10.96.0.1/12", true),
            (v4, "10.96.0.0/32", false),
            (v4, "10.96.0.1/32", true),
            (v4, "0.0.0.0/0", true),
            (v4, "10.96.0.0/33", false),
            (v4, "10.96.0.0/", false),
            (v4, "10.112.0.0/12", false),
            (v4, "::/0", false),
            (v4, "::ffff:10.96.0.1", true),
            (v4, "10.96.0", false),
            (v4, "96.0.1", false),
            (v4, "127.0.0.1,fd00::/8,10.0.0.0/8", true),
            (v6, "fd00:10:96::1", true),
            (v6, "FD00:10:96:0::1", true),
            (v6, "[fd00:10:96::1]", true),
            (v6, "[fd00:10:96::1]:6443", true),
            (v6, "[fd00:10:96::1]:443", false),
            (v6, "fd00:10:96::/112", true),
            (v6, "[fd00:10:96::]/112", true),
            (v6, "fd00:10:97::/48", false),
            (v6, "0.0.0.0/0", false),
            ("https://localhost:6443", "localhost", true),
            ("https://localhost:6443", "127.0.0.1", false),
            ("https://127.0.0.1:6443", "localhost", false),
        ] {
            let variables = [("HTTPS_PROXY", "http://a:1"), ("HTTP_PROXY", "http://a:1"), ("NO_PROXY", exceptions)];
            assert_eq!(chosen(url, &variables).unwrap().is_none(), is_excepted, "{url} {exceptions:?}");
        }
    }
}

//! The parser of database URLs. General URL parsers keep unwiped copies of the password and guess where it ends.

use std::{net::Ipv6Addr, num::NonZeroU32, path::PathBuf, time::Duration};

use secrecy::SecretString;
use zeroize::Zeroizing;

use super::dsn::{Dsn, DsnError, Parameter, UnknownParameters, UrlPart, WithoutPassword};
use crate::{
    secret::Credential,
    tenant::{CaCertificate, Endpoint, Pooler, Server, Tls, TlsMode},
};

/// Postgres cuts longer names off without an error (`NAMEDATALEN - 1`), so that two of them would become one.
const MAX_NAME: usize = 63;

pub(super) fn dsn(text: &str, without_password: WithoutPassword) -> Result<Dsn, DsnError> {
    if text.len() > Dsn::MAX_LEN {
        return Err(DsnError::TooLong);
    }
    let text = text
        .strip_suffix("\r\n")
        .or_else(|| text.strip_suffix('\n'))
        .unwrap_or(text);
    let rest = without_scheme(text)?;
    if rest.contains(char::is_control) {
        return Err(DsnError::RawCharacter);
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if tail.contains(['@', '#']) {
        return Err(DsnError::Ambiguous);
    }
    // Everything before the parameters is checked before they are: in a text of another shape they may be pieces of a
    // password, and an error names the unknown ones.
    let (login, hosts) = authority.rsplit_once('@').ok_or(DsnError::MissingUser)?;
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    if user.is_empty() {
        return Err(DsnError::MissingUser);
    }
    if hosts.contains(char::is_whitespace) || tail.contains(char::is_whitespace) {
        return Err(DsnError::RawCharacter);
    }
    let address = Address::read(hosts)?;
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let database = database(path)?;
    let parameters = Parameters::read(query)?;

    let no_authentication = parameters.no_authentication()?;
    let credential = credential(user, password, no_authentication, without_password)?;
    let endpoints = address.endpoints(parameters.decoded(Parameter::Host)?)?;
    let tls = tls(
        parameters.tls_mode()?,
        parameters.decoded(Parameter::SslRootCert)?,
        &endpoints,
    )?;

    let first = endpoints
        .first()
        .cloned()
        .expect("the list of hosts is never empty");
    let mut server = Server::new(first, &**database);
    server.endpoints = endpoints;
    server.tls = tls;
    server.pooler = parameters.pooler()?;
    Ok(Dsn {
        server,
        credential,
        connection_limit: parameters.connection_limit()?,
        schema: parameters.schema()?,
        application_name: parameters.text(Parameter::ApplicationName)?,
        connect_timeout: parameters.seconds(Parameter::ConnectTimeout)?,
        pool_timeout: parameters.seconds(Parameter::PoolTimeout)?,
    })
}

fn without_scheme(text: &str) -> Result<&str, DsnError> {
    let (scheme, rest) = text.split_once("://").ok_or(DsnError::Scheme)?;
    let is = |name: &str| scheme.eq_ignore_ascii_case(name);
    if is("postgres") || is("postgresql") {
        Ok(rest)
    } else if is("https") || is("http") {
        Err(DsnError::ApiAddress)
    } else {
        Err(DsnError::Scheme)
    }
}

fn credential(
    user: &str,
    password: &str,
    no_authentication: bool,
    without_password: WithoutPassword,
) -> Result<Credential, DsnError> {
    let user = decode(user, UrlPart::User)?;
    let credential = match (password, no_authentication, without_password) {
        ("", true, _) | ("", _, WithoutPassword::Accept) => Credential::without_password(&user),
        ("", false, WithoutPassword::Refuse) => return Err(DsnError::MissingPassword),
        (_, true, _) => return Err(DsnError::UnexpectedPassword),
        (password, false, _) => {
            let mut password = decode(password, UrlPart::Password)?;
            // Exactly filled, so that boxing it moves no byte.
            let password = std::mem::take(&mut *password).into_boxed_str();
            Credential::new(&user, SecretString::from(password))
        }
    };
    Ok(credential.expect("the user is not empty, and decoding lets no NUL through"))
}

/// What stands between the `@` and the path.
enum Address {
    Hosts(Vec<Endpoint>),
    /// No host, perhaps a port: the parameter `host` has to say.
    Port(u16),
}

impl Address {
    fn read(text: &str) -> Result<Self, DsnError> {
        if text.is_empty() || text.starts_with(':') && !text.contains(',') {
            let (host, port) = split_port(text)?;
            return if host.is_empty() {
                Ok(Self::Port(port))
            } else {
                Err(DsnError::Host)
            };
        }
        text.split(',')
            .map(endpoint)
            .collect::<Result<_, _>>()
            .map(Self::Hosts)
    }

    fn endpoints(self, parameter: Option<Zeroizing<String>>) -> Result<Vec<Endpoint>, DsnError> {
        let (port, parameter) = match (self, parameter) {
            (Self::Hosts(hosts), None) => return Ok(hosts),
            (Self::Port(_), None) => return Err(DsnError::MissingHost),
            (Self::Port(port), Some(parameter)) => (port, parameter),
            (Self::Hosts(hosts), Some(parameter)) => match &*hosts {
                // Some clients insist on a host and take `localhost` for a placeholder.
                [only] if &*only.host == "localhost" && parameter.starts_with('/') => (only.port, parameter),
                _ => return Err(DsnError::HostTwice),
            },
        };
        let host = host(&parameter).ok_or(DsnError::Value(Parameter::Host))?;
        Ok(vec![Endpoint::new(host, port)])
    }
}

fn endpoint(text: &str) -> Result<Endpoint, DsnError> {
    if let Some(text) = text.strip_prefix('[') {
        let (address, port) = text.split_once(']').ok_or(DsnError::Host)?;
        let address: Ipv6Addr = address.parse().map_err(|_| DsnError::Host)?;
        let ("", port) = split_port(port)? else {
            return Err(DsnError::Host);
        };
        return Ok(Endpoint::new(address.to_string(), port));
    }
    let (name, port) = split_port(text)?;
    if name.is_empty() {
        return Err(DsnError::MissingHost);
    }
    let name = decode(name, UrlPart::Host)?;
    Ok(Endpoint::new(host(&name).ok_or(DsnError::Host)?, port))
}

fn split_port(text: &str) -> Result<(&str, u16), DsnError> {
    let Some((host, port)) = text.rsplit_once(':') else {
        return Ok((text, Endpoint::DEFAULT_PORT));
    };
    if host.contains(':') {
        // An IPv6 address without brackets, whose last group looks like a port.
        return Err(DsnError::Host);
    }
    let port = number(port).and_then(|port| u16::try_from(port).ok());
    match port {
        Some(port @ 1..) => Ok((host, port)),
        _ => Err(DsnError::Port),
    }
}

/// The form in which a host is compared and used: names in lower case, sockets as they are.
fn host(text: &str) -> Option<String> {
    if text.starts_with('/') {
        return (!text.contains(char::is_control)).then(|| text.to_owned());
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    (name.len() <= 253 && name.split('.').all(label)).then(|| text.to_ascii_lowercase())
}

fn database(path: &str) -> Result<Zeroizing<String>, DsnError> {
    let name = path.strip_prefix('/').unwrap_or(path);
    if name.is_empty() {
        return Err(DsnError::MissingDatabase);
    }
    if name.contains('/') {
        return Err(DsnError::Database);
    }
    let name = decode(name, UrlPart::Database)?;
    if name.len() > MAX_NAME {
        return Err(DsnError::Database);
    }
    Ok(name)
}

fn tls(
    mode: Option<TlsMode>,
    ca: Option<Zeroizing<String>>,
    endpoints: &[Endpoint],
) -> Result<Tls, DsnError> {
    let tls = match (ca.as_ref().map(|ca| ca.as_str()), mode) {
        (None, mode) => Tls::new(mode.unwrap_or_default()),
        (Some("system"), None | Some(TlsMode::VerifyFull)) => Tls::new(TlsMode::VerifyFull),
        (Some("system"), Some(_)) => return Err(DsnError::SystemCa),
        (Some(path), Some(mode @ (TlsMode::VerifyCa | TlsMode::VerifyFull))) => {
            Tls::new(mode).ca(CaCertificate::File(PathBuf::from(path)))
        }
        (Some(_), _) => return Err(DsnError::UnusedCa),
    };
    let is_socket = |endpoint: &Endpoint| endpoint.host.starts_with('/');
    let optional = matches!(tls.mode, TlsMode::Disable | TlsMode::Prefer);
    if endpoints.iter().any(is_socket) && !optional {
        return Err(DsnError::TlsOverSocket);
    }
    if endpoints.iter().all(is_socket) {
        // Spares a round trip that the server answers with no.
        return Ok(Tls::new(TlsMode::Disable));
    }
    Ok(tls)
}

/// The parameters as they stand in the URL, each at most once and none empty.
struct Parameters<'a>([Option<&'a str>; Parameter::ALL.len()]);

impl<'a> Parameters<'a> {
    fn read(query: &'a str) -> Result<Self, DsnError> {
        let mut values = [None; Parameter::ALL.len()];
        let mut unknown = Unknown::default();
        let mut duplicate = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').map_or((pair, None), |(n, v)| (n, Some(v)));
            match Parameter::named(name) {
                None => unknown.add(name, value),
                Some(parameter) => {
                    if values[parameter as usize].replace(value.unwrap_or("")).is_some() {
                        duplicate = Some(parameter);
                    }
                }
            }
        }
        unknown.into_result()?;
        duplicate.map_or(Ok(()), |parameter| Err(DsnError::Duplicate(parameter)))?;
        let empty = |parameter: &Parameter| values[*parameter as usize] == Some("");
        match Parameter::ALL.into_iter().find(empty) {
            Some(parameter) => Err(DsnError::Value(parameter)),
            None => Ok(Self(values)),
        }
    }

    fn decoded(&self, parameter: Parameter) -> Result<Option<Zeroizing<String>>, DsnError> {
        self.0[parameter as usize]
            .map(|value| decode(value, UrlPart::Parameter(parameter)))
            .transpose()
    }

    fn text(&self, parameter: Parameter) -> Result<Option<Box<str>>, DsnError> {
        Ok(self.decoded(parameter)?.map(|value| value.as_str().into()))
    }

    fn positive(&self, parameter: Parameter) -> Result<Option<u32>, DsnError> {
        let Some(value) = self.decoded(parameter)? else {
            return Ok(None);
        };
        match number(&value) {
            Some(value @ 1..) => Ok(Some(value)),
            _ => Err(DsnError::Value(parameter)),
        }
    }

    fn seconds(&self, parameter: Parameter) -> Result<Option<Duration>, DsnError> {
        let seconds = self.positive(parameter)?;
        Ok(seconds.map(|seconds| Duration::from_secs(seconds.into())))
    }

    fn connection_limit(&self) -> Result<Option<NonZeroU32>, DsnError> {
        Ok(self
            .positive(Parameter::ConnectionLimit)?
            .and_then(NonZeroU32::new))
    }

    fn pooler(&self) -> Result<Pooler, DsnError> {
        let value = self.decoded(Parameter::PgBouncer)?;
        match value.as_ref().map(|value| value.as_str()) {
            None | Some("false") => Ok(Pooler::Direct),
            Some("true") => Ok(Pooler::Transaction {
                max_prepared_statements: 0,
            }),
            Some(_) => Err(DsnError::Value(Parameter::PgBouncer)),
        }
    }

    fn tls_mode(&self) -> Result<Option<TlsMode>, DsnError> {
        let Some(value) = self.decoded(Parameter::SslMode)? else {
            return Ok(None);
        };
        if value.as_str() == "allow" {
            return Err(DsnError::SslModeAllow);
        }
        let mode = value.parse();
        mode.map(Some).map_err(|_| DsnError::Value(Parameter::SslMode))
    }

    fn schema(&self) -> Result<Option<Box<str>>, DsnError> {
        let Some(name) = self.text(Parameter::Schema)? else {
            return Ok(None);
        };
        // Narrower than Postgres' rule: a comma means a list, "$user" and "pg_temp" mean something else for every
        // user and session, and quotes are for the one who writes the statement.
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '$');
        if name.len() <= MAX_NAME
            && name.chars().all(plain)
            && !name.starts_with('$')
            && !name.starts_with("pg_")
        {
            Ok(Some(name))
        } else {
            Err(DsnError::Value(Parameter::Schema))
        }
    }

    fn no_authentication(&self) -> Result<bool, DsnError> {
        let value = self.decoded(Parameter::RequireAuth)?;
        match value.as_ref().map(|value| value.as_str()) {
            None => Ok(false),
            Some("none") => Ok(true),
            Some(_) => Err(DsnError::Value(Parameter::RequireAuth)),
        }
    }
}

#[derive(Default)]
struct Unknown {
    found: UnknownParameters,
    after_secret: bool,
}

impl Unknown {
    fn add(&mut self, name: &str, value: Option<&str>) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        let is_name = (1..=40).contains(&name.len()) && name.bytes().all(plain) && value.is_some();
        if !is_name || self.after_secret {
            self.found.unnamed += 1;
        } else if !self.found.names.iter().any(|known| **known == *name) {
            self.found.names.push(name.into());
        }
        // Without a lower-case copy, which nobody would wipe: the name may be a piece of a password.
        let holds = |word: &str| {
            name.as_bytes()
                .windows(word.len())
                .any(|piece| piece.eq_ignore_ascii_case(word.as_bytes()))
        };
        self.after_secret |= ["pass", "pwd", "secret", "token", "key"].into_iter().any(holds);
    }

    fn into_result(self) -> Result<(), DsnError> {
        if self.found == UnknownParameters::default() {
            Ok(())
        } else {
            Err(DsnError::UnknownParameters(self.found))
        }
    }
}

fn number(text: &str) -> Option<u32> {
    // `parse` would take a plus sign.
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

/// Undoes percent-encoding, strictly, into a buffer that is wiped and exactly filled: it never grows, which would
/// leave a copy behind.
fn decode(text: &str, part: UrlPart) -> Result<Zeroizing<String>, DsnError> {
    let broken = || DsnError::Encoding(part);
    let escapes = text.bytes().filter(|b| *b == b'%').count();
    let len = text.len().checked_sub(2 * escapes).ok_or_else(broken)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(len));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = if byte == b'%' {
            let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
            let (high, low) = (digit(rest.next()), digit(rest.next()));
            let value = high.zip(low).map(|(high, low)| high * 16 + low);
            value
                .and_then(|value| u8::try_from(value).ok())
                .ok_or_else(broken)?
        } else {
            byte
        };
        if byte == 0 {
            return Err(broken());
        }
        bytes.push(byte);
    }
    if std::str::from_utf8(&bytes).is_err() {
        return Err(broken());
    }
    let text = String::from_utf8(std::mem::take(&mut *bytes)).expect("the bytes were just found to be UTF-8");
    Ok(Zeroizing::new(text))
}

//! Envoy's external authorization over gRPC: a `CheckRequest` in, a `CheckResponse` out.
//!
//! `envoy.service.auth.v3`, in Envoy's `api/envoy/service/auth/v3/{external_auth,attribute_context}.proto`. A request is
//! read where it lies; only what a decision needs is looked at. What a client sends can change neither what the route
//! demands, which is in `context_extensions`, nor the `X-Keywright-*` headers, which overwrite the client's.

use std::borrow::Cow;
use std::net::IpAddr;

use smallvec::SmallVec;

use super::decisions::Decisions;
use super::field::{
    self, address, attribute_context, check_response, denied_http_response, header_value, header_value_option,
    http_request, http_status, map_entry, ok_http_response,
};
use super::protobuf::{Fields, Malformed, fields, put, put_message, put_number};
use crate::serve::problem::ProblemDocument;
use keywright_core::client_address::{ClientAddressSource, Unresolved};
use keywright_core::credential::{Carrier, Credential, CredentialError, credential};
use keywright_core::fence::Moment;
use keywright_core::verify::{self, InvalidRoute, Permit, Route};

/// Answers what Envoy asks.
pub struct Authorization {
    decisions: Decisions,
    client_address_source: ClientAddressSource,
}

/// Why there is no `CheckResponse`: Envoy then answers as its `status_on_error` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoResponse {
    /// The octets are no `CheckRequest`.
    Malformed,
    /// The records are not known, or too old to rely on.
    Unavailable,
}

/// What a decision needs of a `CheckRequest`.
#[derive(Debug, Default, PartialEq, Eq)]
struct CheckRequest<'m> {
    /// `attributes.source.address.socket_address.address`
    source_address: Option<&'m str>,
    /// Those of [`Header`], in their order.
    headers: SmallVec<[(Header, &'m [u8]); 4]>,
    /// Whether `attributes.request.http.headers` holds anything.
    has_headers: bool,
    /// Whether `attributes.request.http.header_map` does: Envoy fills in one of the two.
    has_header_map: bool,
    /// `attributes.context_extensions`, in the order in which they stand there.
    context_extensions: Vec<(&'m str, &'m str)>,
}

/// A header that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    Authorization,
    XApiKey,
    XForwardedFor,
}

/// The code of `google.rpc.Status`; for Envoy, all but the first refuse.
#[derive(Clone, Copy)]
enum Code {
    Ok = 0,
    PermissionDenied = 7,
    Unauthenticated = 16,
}

/// `OVERWRITE_IF_EXISTS_OR_ADD`
const OVERWRITE: u64 = 2;

impl Authorization {
    /// One that takes the address of the client from `client_address_source`; its peer is what Envoy calls the source.
    pub fn new(decisions: Decisions, client_address_source: ClientAddressSource) -> Self {
        Self { decisions, client_address_source }
    }

    /// Appends the `CheckResponse` to the `CheckRequest` in `message`. Answers until when it may be sent, if it lets the
    /// request pass.
    ///
    /// # Errors
    /// If there is none. `response` is as it was.
    pub fn check(&self, message: &[u8], response: &mut Vec<u8>) -> Result<Option<Moment>, NoResponse> {
        let request = CheckRequest::read(message).map_err(|Malformed| NoResponse::Malformed)?;
        let credential = request.credential();
        let verify_request =
            verify::Request { credential, route: request.route(), client_address: &|| self.client_address(&request) };
        let carrier = credential.map(|credential| credential.carrier).ok();
        let allow = |permit: &Permit<'_>, until| {
            allow(permit, carrier, response);
            until
        };
        match self.decisions.decide(&verify_request, allow) {
            Ok(until) => Ok(Some(until)),
            Err(answer) if answer.status.is_server_error() => Err(NoResponse::Unavailable),
            Err(answer) => {
                deny(&answer, response);
                Ok(None)
            }
        }
    }

    fn client_address(&self, request: &CheckRequest<'_>) -> Result<IpAddr, Unresolved> {
        let source = &self.client_address_source;
        let peer = match source {
            // It does not matter.
            ClientAddressSource::XffHops(_) => IpAddr::from([0, 0, 0, 0]),
            _ => request.peer().ok_or(Unresolved::NoPeer)?,
        };
        source.resolve(peer, request.lines(Header::XForwardedFor))
    }
}

impl<'m> CheckRequest<'m> {
    fn read(message: &'m [u8]) -> Result<Self, Malformed> {
        let mut request = Self::default();
        for field in fields(message) {
            let field = field?;
            if field.number == field::check_request::ATTRIBUTES {
                request.read_attributes(fields(field.message()?))?;
            }
        }
        Ok(request)
    }

    fn read_attributes(&mut self, attributes: Fields<'m>) -> Result<(), Malformed> {
        for field in attributes {
            let field = field?;
            match field.number {
                attribute_context::SOURCE => self.read_source(fields(field.message()?))?,
                attribute_context::REQUEST => self.read_request(fields(field.message()?))?,
                attribute_context::CONTEXT_EXTENSIONS => {
                    let (name, value) = read_entry(fields(field.message()?))?;
                    let text = |octets| str::from_utf8(octets).map_err(|_| Malformed);
                    self.context_extensions.push((text(name)?, text(value)?));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_source(&mut self, source: Fields<'m>) -> Result<(), Malformed> {
        for field in source {
            let field = field?;
            if field.number == field::peer::ADDRESS {
                self.read_address(fields(field.message()?))?;
            }
        }
        Ok(())
    }

    /// One of a socket's address, a pipe's and one that is internal to Envoy; the last counts.
    fn read_address(&mut self, address: Fields<'m>) -> Result<(), Malformed> {
        for field in address {
            let field = field?;
            match field.number {
                address::SOCKET_ADDRESS => self.read_socket_address(fields(field.message()?))?,
                address::PIPE | address::ENVOY_INTERNAL_ADDRESS => {
                    fields(field.message()?).try_for_each(|field| field.map(drop))?;
                    self.source_address = None;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_socket_address(&mut self, address: Fields<'m>) -> Result<(), Malformed> {
        for field in address {
            let field = field?;
            if field.number == field::socket_address::ADDRESS {
                self.source_address = Some(field.text()?);
            }
        }
        Ok(())
    }

    fn read_request(&mut self, request: Fields<'m>) -> Result<(), Malformed> {
        for field in request {
            let field = field?;
            if field.number == field::request::HTTP {
                self.read_http_request(fields(field.message()?))?;
            }
        }
        Ok(())
    }

    fn read_http_request(&mut self, request: Fields<'m>) -> Result<(), Malformed> {
        for field in request {
            let field = field?;
            match field.number {
                http_request::HEADERS => {
                    let (name, value) = read_entry(fields(field.message()?))?;
                    self.has_headers = true;
                    self.take_in(name, value);
                }
                http_request::HEADER_MAP => self.read_header_map(fields(field.message()?))?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_header_map(&mut self, header_map: Fields<'m>) -> Result<(), Malformed> {
        for field in header_map {
            let field = field?;
            if field.number == field::header_map::HEADERS {
                let (name, value) = read_header_value(fields(field.message()?))?;
                self.has_header_map = true;
                self.take_in(name, value);
            }
        }
        Ok(())
    }

    fn take_in(&mut self, name: &[u8], value: &'m [u8]) {
        let header = Header::ALL.into_iter().find(|header| name.eq_ignore_ascii_case(header.name().as_bytes()));
        if let Some(header) = header {
            self.headers.push((header, value));
        }
    }

    fn lines(&self, header: Header) -> impl Iterator<Item = &'m [u8]> + Clone {
        self.headers.iter().filter(move |(own, _)| *own == header).map(|(_, value)| *value)
    }

    fn credential(&self) -> Result<Credential<'m>, CredentialError> {
        if self.has_headers && self.has_header_map {
            // Not from an Envoy; and whoever reads the other half may find another key in it.
            return Err(CredentialError::Ambiguous);
        }
        credential(self.lines(Header::Authorization), self.lines(Header::XApiKey))
    }

    /// What the route demands. An Envoy sends a map, of which two names are known: with a third, one is unknown or stands
    /// there twice, which has no meaning.
    fn route(&self) -> Result<Route<'m>, InvalidRoute> {
        match &*self.context_extensions {
            [_, _, _, ..] => return Err(InvalidRoute::UnknownParameter),
            [(first, _), (second, _)] if first == second => return Err(InvalidRoute::UnknownParameter),
            _ => {}
        }
        let parameters = self.context_extensions.iter();
        Route::read(parameters.flat_map(|(name, values)| {
            values.split(',').map(move |value| (Cow::Borrowed(*name), Cow::Borrowed(value)))
        }))
    }

    /// Without the zone that an Envoy adds to link-local addresses.
    fn peer(&self) -> Option<IpAddr> {
        self.source_address?.split('%').next()?.parse().ok()
    }
}

/// An entry of a map from text to text.
fn read_entry<'m>(entry: Fields<'m>) -> Result<(&'m [u8], &'m [u8]), Malformed> {
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    for field in entry {
        let field = field?;
        match field.number {
            map_entry::KEY => key = field.text_octets()?,
            map_entry::VALUE => value = field.text_octets()?,
            _ => {}
        }
    }
    Ok((key, value))
}

/// An `envoy.config.core.v3.HeaderValue`: Envoy fills in `value` or `raw_value`.
fn read_header_value<'m>(header: Fields<'m>) -> Result<(&'m [u8], &'m [u8]), Malformed> {
    let (mut key, mut value, mut raw_value): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
    for field in header {
        let field = field?;
        match field.number {
            header_value::KEY => key = field.text_octets()?,
            header_value::VALUE => value = field.text_octets()?,
            header_value::RAW_VALUE => raw_value = field.message()?,
            _ => {}
        }
    }
    Ok((key, if raw_value.is_empty() { value } else { raw_value }))
}

impl Header {
    const ALL: [Self; 3] = [Self::Authorization, Self::XApiKey, Self::XForwardedFor];

    fn name(self) -> &'static str {
        match self {
            Self::Authorization => Carrier::Authorization.header_name(),
            Self::XApiKey => Carrier::XApiKey.header_name(),
            Self::XForwardedFor => "x-forwarded-for",
        }
    }
}

/// All identity headers are there, empty where there is nothing to say, so that none that a client made up is left
/// standing; and the key does not go on to the upstream.
fn allow(permit: &Permit<'_>, carrier: Option<Carrier>, response: &mut Vec<u8>) {
    let (entry, shown) = (permit.entry(), permit.shown());
    // All before the first is put: each is in another place in memory, and the processor then waits for all of them at once.
    let identity = [
        ("x-keywright-key", shown.as_str()),
        ("x-keywright-namespace", entry.namespace()),
        ("x-keywright-name", entry.name()),
        ("x-keywright-owner", entry.owner()),
        ("x-keywright-scopes", entry.scopes()),
    ];
    put_status(response, Code::Ok);
    put_message(response, check_response::OK_RESPONSE, |ok| {
        for (name, value) in identity {
            put_header(ok, ok_http_response::HEADERS, name, value);
        }
        if let Some(carrier) = carrier {
            put(ok, ok_http_response::HEADERS_TO_REMOVE, carrier.header_name().as_bytes());
        }
    });
}

fn deny(answer: &ProblemDocument, response: &mut Vec<u8>) {
    put_status(response, if answer.challenge.is_some() { Code::Unauthenticated } else { Code::PermissionDenied });
    put_message(response, check_response::DENIED_RESPONSE, |denied| {
        put_message(denied, denied_http_response::STATUS, |status| {
            put_number(status, http_status::CODE, answer.status.as_u16().into())
        });
        put_header(denied, denied_http_response::HEADERS, "content-type", "application/problem+json");
        put_header(denied, denied_http_response::HEADERS, "cache-control", "no-store");
        if let Some(challenge) = answer.challenge {
            put_header(denied, denied_http_response::HEADERS, "www-authenticate", challenge);
        }
        put(denied, denied_http_response::BODY, answer.body.as_bytes());
    });
}

fn put_status(response: &mut Vec<u8>, code: Code) {
    put_message(response, check_response::STATUS, |status| {
        if !matches!(code, Code::Ok) {
            put_number(status, field::status::CODE, code as u64);
        }
    });
}

/// A `HeaderValueOption` that overwrites.
fn put_header(message: &mut Vec<u8>, field: u32, name: &str, value: &str) {
    put_message(message, field, |option| {
        put_message(option, header_value_option::HEADER, |header| {
            put(header, header_value::KEY, name.as_bytes());
            if !value.is_empty() {
                put(header, header_value::VALUE, value.as_bytes());
            }
        });
        put_number(option, header_value_option::APPEND_ACTION, OVERWRITE);
        put_number(option, header_value_option::KEEP_EMPTY_VALUE, 1);
    });
}

#[cfg(test)]
mod tests;

//! What an ApiKey's Secret holds beside the key: labels, annotations, and further entries that are made from text.
//!
//! A text is read once, into pieces. Rendering puts values between them, as they are and without reading them again: no
//! value can begin a variable.

use std::collections::BTreeMap;
use std::fmt;

use crate::address::as_written;
use crate::duration::hint;
use crate::key::PREFIX_LENGTH;

/// `spec.secret.template`. The default is that of an ApiKey without one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretTemplate {
    /// Labels of the Secret.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the Secret.
    pub annotations: BTreeMap<String, String>,
    /// The Secret's type.
    pub secret_type: SecretType,
    /// Entries beside the key.
    pub data: BTreeMap<String, Text>,
}

impl SecretTemplate {
    /// Whether it adds nothing to a Secret.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty() && self.data.is_empty()
    }
}

/// The types that an ApiKey's Secret can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecretType {
    /// Any entries.
    #[default]
    Opaque,
    /// With a `username`, a `password` or both.
    BasicAuth,
}

impl SecretType {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Opaque, Self::BasicAuth];

    /// As in `type` of a Secret.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opaque => "Opaque",
            Self::BasicAuth => "kubernetes.io/basic-auth",
        }
    }

    /// The type of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|secret_type| secret_type.as_str() == name)
    }

    /// The entries of which the API server demands one.
    pub fn demands_one_of(self) -> &'static [&'static str] {
        match self {
            Self::Opaque => &[],
            Self::BasicAuth => &["username", "password"],
        }
    }
}

/// A text with variables: `$(KEY)` and others, and `$$` for a dollar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Variable(Variable),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    Key,
    Name,
    Namespace,
    Prefix,
    ExpiresAt,
}

/// What the variables stand for. It holds a key, and so it has no `Debug`.
#[derive(Clone, Copy)]
pub struct Values<'v> {
    /// `$(KEY)`: the key. `$(PREFIX)` is the part of it that may be shown.
    pub key: &'v str,
    /// `$(NAME)`: the ApiKey's name.
    pub name: &'v str,
    /// `$(NAMESPACE)`: the ApiKey's namespace.
    pub namespace: &'v str,
    /// `$(EXPIRES_AT)`: an RFC 3339 time, or `Never`.
    pub expires_at: &'v str,
}

/// A `$` that begins nothing, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidText {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    slip: Slip,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Slip {
    /// `$(` and a name that no variable has.
    Unknown(String),
    /// `$(` without `)`.
    Unclosed,
    /// `$` before anything else. It may be how a shell writes a variable.
    Lone(Option<Variable>),
}

impl Variable {
    const ALL: [Self; 5] = [Self::Key, Self::Name, Self::Namespace, Self::Prefix, Self::ExpiresAt];

    fn as_str(self) -> &'static str {
        match self {
            Self::Key => "KEY",
            Self::Name => "NAME",
            Self::Namespace => "NAMESPACE",
            Self::Prefix => "PREFIX",
            Self::ExpiresAt => "EXPIRES_AT",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|variable| variable.as_str() == name)
    }

    /// The variable that was probably meant by a name.
    fn nearest(name: &str) -> Option<Self> {
        Self::parse(&name.trim().to_ascii_uppercase().replace('-', "_"))
    }
}

impl<'v> Values<'v> {
    fn of(self, variable: Variable) -> &'v str {
        match variable {
            Variable::Key => self.key,
            Variable::Name => self.name,
            Variable::Namespace => self.namespace,
            Variable::Prefix => self.key.get(..PREFIX_LENGTH).unwrap_or_default(),
            Variable::ExpiresAt => self.expires_at,
        }
    }
}

impl Text {
    /// Reads a text.
    ///
    /// # Errors
    /// The first `$` that begins neither a variable nor `$$`.
    pub fn parse(text: &str) -> Result<Self, InvalidText> {
        let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text);
        while let Some((before, after)) = rest.split_once('$') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('$') {
                literal.push('$');
                rest = after;
                continue;
            }
            let (variable, after) = variable_before(after).map_err(|slip| InvalidText::at(text, after, slip))?;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Variable(variable));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(pieces))
    }

    /// The text with these values.
    pub fn render(&self, values: Values<'_>) -> String {
        // The full capacity from the start: a string that grows leaves copies of the key in memory.
        let mut rendered = String::with_capacity(self.parts(values).map(str::len).sum());
        self.parts(values).for_each(|part| rendered.push_str(part));
        rendered
    }

    /// Whether `octets` are the text with these values. Makes no copy of the key.
    pub fn is_rendered_in(&self, octets: &[u8], values: Values<'_>) -> bool {
        let rest = self.parts(values).try_fold(octets, |rest, part| rest.strip_prefix(part.as_bytes()));
        rest.is_some_and(<[u8]>::is_empty)
    }

    fn parts<'p>(&'p self, values: Values<'p>) -> impl Iterator<Item = &'p str> {
        self.0.iter().map(move |piece| match piece {
            Piece::Literal(text) => text,
            Piece::Variable(variable) => values.of(*variable),
        })
    }
}

/// The variable that `$` and this text begin with, and what follows it.
fn variable_before(text: &str) -> Result<(Variable, &str), Slip> {
    let Some(inner) = text.strip_prefix('(') else { return Err(Slip::Lone(meant_by(text))) };
    let (name, after) = inner.split_once(')').ok_or(Slip::Unclosed)?;
    let variable = Variable::parse(name).ok_or_else(|| Slip::Unknown(name.to_owned()))?;
    Ok((variable, after))
}

/// The variable in `${KEY}` or `$KEY`, of which `text` is what follows the dollar.
fn meant_by(text: &str) -> Option<Variable> {
    let name = match text.strip_prefix('{') {
        Some(inner) => inner.split_once('}')?.0,
        None => text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()?,
    };
    Variable::nearest(name)
}

impl InvalidText {
    /// The `$` before `after`, which `text` ends with.
    fn at(text: &str, after: &str, slip: Slip) -> Self {
        let before = text.strip_suffix(after).and_then(|before| before.strip_suffix('$')).unwrap_or_default();
        let line = before.rsplit('\n').next().unwrap_or_default();
        Self { line: before.matches('\n').count() + 1, column: line.chars().count() + 1, slip }
    }
}

impl fmt::Display for InvalidText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = format!("at line {}, column {}", self.line, self.column);
        let known = Variable::ALL.map(|variable| format!("$({})", variable.as_str())).join(", ");
        let meant =
            |variable: Option<Variable>| hint(variable.map(|variable| format!("$({})", variable.as_str())).as_deref());
        match &self.slip {
            Slip::Unknown(name) => {
                let nearest = meant(Variable::nearest(name));
                let name = as_written(name);
                write!(f, "$({name}) {place} is none of {known}; for the text itself, write $$({name}){nearest}")
            }
            Slip::Unclosed => {
                write!(f, "$( {place} has no ) after it; write one of {known}, or $$( for the text itself")
            }
            Slip::Lone(nearest) => {
                let nearest = meant(*nearest);
                write!(f, "$ {place} begins none of {known}; write $$ for a dollar{nearest}")
            }
        }
    }
}

#[cfg(test)]
mod tests;

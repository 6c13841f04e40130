//! The words that a key is declared and asked for with: owner, scope, namespace. Each grammar stands here alone. No word
//! holds a space, a comma or a control character, so that none can pass for two in a header, or for a header of its own.

/// Who answers for a key: `spec.owner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner<'t>(&'t str);

/// What a key may be used for: an item of `spec.scopes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope<'t>(&'t str);

/// Where a key was declared. Looser than a DNS-1123 label, which the API server has seen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace<'t>(&'t str);

impl<'t> Owner<'t> {
    /// The grammar, in words.
    pub const RULE: &'static str = "must be 1 to 128 ASCII letters, digits and ._@:/+=-, without spaces";

    /// Reads an owner; `None` if it breaks [`Owner::RULE`].
    pub fn parse(text: &'t str) -> Option<Self> {
        is_word(text, 128, b"._@:/+=-").then_some(Self(text))
    }

    /// As it was written.
    pub fn as_str(self) -> &'t str {
        self.0
    }
}

impl<'t> Scope<'t> {
    /// The grammar, in words.
    pub const RULE: &'static str = "must be 1 to 64 letters, digits and ._:/-";

    /// Reads a scope; `None` if it breaks [`Scope::RULE`].
    pub fn parse(text: &'t str) -> Option<Self> {
        is_word(text, 64, b"._:/-").then_some(Self(text))
    }

    /// As it was written.
    pub fn as_str(self) -> &'t str {
        self.0
    }
}

impl<'t> Namespace<'t> {
    /// Reads a namespace; `None` if nothing in Kubernetes can be named so.
    pub fn parse(text: &'t str) -> Option<Self> {
        is_word(text, 63, b"-").then_some(Self(text))
    }

    /// As it was written.
    pub fn as_str(self) -> &'t str {
        self.0
    }
}

/// Whether `text` is 1 to `longest` ASCII letters, digits and bytes of `marks`.
pub(crate) fn is_word(text: &str, longest: usize, marks: &[u8]) -> bool {
    (1..=longest).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || marks.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_can_pass_for_two_or_for_a_header() {
        for text in ["", "a b", "a,b", "a\r\nx-keywright-owner: b", "a\0", "ä", "a;b", "\"a\""] {
            assert_eq!(
                (Owner::parse(text), Scope::parse(text), Namespace::parse(text)),
                (None, None, None),
                "{text:?}"
            );
        }
    }

    #[test]
    fn every_mark_and_the_longest_word_are_taken() {
        assert_eq!(Owner::parse("a+b=c@example.org").map(Owner::as_str), Some("a+b=c@example.org"));
        assert_eq!(Scope::parse("packages:read/a_b.c-d").map(Scope::as_str), Some("packages:read/a_b.c-d"));
        assert_eq!(Namespace::parse("team-1").map(Namespace::as_str), Some("team-1"));
        for (longest, is_taken) in [
            (128, (|text| Owner::parse(text).is_some()) as fn(&str) -> bool),
            (64, |text| Scope::parse(text).is_some()),
            (63, |text| Namespace::parse(text).is_some()),
        ] {
            assert!(is_taken(&"a".repeat(longest)) && !is_taken(&"a".repeat(longest + 1)), "{longest}");
        }
    }
}

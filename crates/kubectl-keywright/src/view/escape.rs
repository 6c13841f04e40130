//! Texts of objects, made safe for a terminal.
//!
//! Whoever may write an ApiKey may write control sequences into it, and characters that turn the reading direction round.
//! Letters of all languages stay as they are.

use std::borrow::Cow;

/// Characters that are not seen, and change how others are: formats, separators of lines, tags, letters without a shape.
// The general categories Cf, Zl and Zp and the property Default_Ignorable_Code_Point of Unicode 16, some gaps filled; and the
// blank Braille pattern.
const UNSEEN: [(char, char); 25] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{110bd}', '\u{110cd}'),
    ('\u{13430}', '\u{1345f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// `text` in one line, with what is not seen written out: `\u{202e}`.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unseen) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unseen(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// Whether a character is not seen, or changes how others are.
pub fn is_unseen(character: char) -> bool {
    character.is_control() || UNSEEN.iter().any(|(first, last)| (*first..=*last).contains(&character))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_seen_is_written_out_and_letters_stay() {
        for (text, escaped) in [
            ("Nightly CI", "Nightly CI"),
            ("Schlüssel für Zoë, 鍵, مفتاح", "Schlüssel für Zoë, 鍵, مفتاح"),
            ("e\u{301}\\\"'", "e\u{301}\\\"'"),
            ("\u{1b}[2J\u{7}\u{9b}1m", "\\u{1b}[2J\\u{7}\\u{9b}1m"),
            ("two\r\nlines\t", "two\\r\\nlines\\t"),
            ("admin\u{202e}gnp.exe", "admin\\u{202e}gnp.exe"),
            ("ci\u{3164}\u{2800}\u{34f}", "ci\\u{3164}\\u{2800}\\u{34f}"),
            ("\u{115f}\u{1160}\u{ffa0}\u{17b4}\u{17b5}", "\\u{115f}\\u{1160}\\u{ffa0}\\u{17b4}\\u{17b5}"),
            ("a\u{fe00}b\u{fe0f}c\u{e0100}d\u{e01ef}", "a\\u{fe00}b\\u{fe0f}c\\u{e0100}d\\u{e01ef}"),
            ("\u{180b}\u{180e}\u{180f}한국어 \u{28ff}", "\\u{180b}\\u{180e}\\u{180f}한국어 \u{28ff}"),
            ("a\u{200b}b\u{feff}c\u{e0041}", "a\\u{200b}b\\u{feff}c\\u{e0041}"),
        ] {
            assert_eq!(escape(text), escaped);
        }
    }

    proptest! {
        #[test]
        fn nothing_unseen_is_left(text in "\\PC*|.*|[\u{0}-\u{1f}\u{7f}-\u{9f}\u{200b}-\u{206f}a]*") {
            prop_assert!(!escape(&text).chars().any(is_unseen));
        }
    }
}

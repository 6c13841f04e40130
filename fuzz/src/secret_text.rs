use keywright_core::secret_template::{Text, Values};

use crate::assert_fit_to_print;
use crate::keys::OPEN;

const VALUES: Values<'_> = Values { key: OPEN, name: "ci", namespace: "$(KEY)", expires_at: "$$" };

/// The first line of the input is what a Secret holds, and the rest is a text of its template.
pub fn secret_text(data: &[u8]) {
    let (stored, text) = match data.iter().position(|octet| *octet == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (&[][..], data),
    };
    let Ok(text) = std::str::from_utf8(text) else { return };
    match (Text::parse(text), read(text)) {
        (Ok(parsed), Ok(expected)) => {
            let rendered = parsed.render(VALUES);
            assert_eq!(rendered, expected);
            assert!(parsed.is_rendered_in(expected.as_bytes(), VALUES));
            assert_eq!(parsed.is_rendered_in(stored, VALUES), stored == expected.as_bytes());
        }
        (Err(problem), Err(place)) => {
            assert_eq!((problem.line, problem.column), place);
            let said = problem.to_string();
            assert!(said.len() <= 1024 && !said.contains('\n') && !said.contains('\u{1b}'), "{said:?}");
            if text.is_ascii() {
                assert_fit_to_print(&said);
            }
        }
        (parsed, expected) => panic!("{parsed:?} instead of {expected:?}"),
    }
}

/// The second reading: character by character, and straight to the result. An error is the line and the column.
fn read(text: &str) -> Result<String, (usize, usize)> {
    let known = [("$$", "$"), ("$(KEY)", OPEN), ("$(NAME)", VALUES.name), ("$(NAMESPACE)", VALUES.namespace)];
    let known = [&known[..], &[("$(PREFIX)", &OPEN[..14]), ("$(EXPIRES_AT)", VALUES.expires_at)]].concat();
    let (mut result, mut rest, mut line, mut column) = (String::new(), text, 1, 1);
    while let Some(first) = rest.chars().next() {
        let (taken, value) = match known.iter().find(|(name, _)| rest.starts_with(name)) {
            Some((name, value)) => (name.len(), *value),
            None if first == '$' => return Err((line, column)),
            None => (first.len_utf8(), &rest[..first.len_utf8()]),
        };
        result.push_str(value);
        (line, column) = if first == '\n' { (line + 1, 1) } else { (line, column + rest[..taken].chars().count()) };
        rest = &rest[taken..];
    }
    Ok(result)
}

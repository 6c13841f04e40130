use proptest::prelude::*;

use super::*;
use crate::testing::KEY;

const VALUES: Values<'_> = Values { key: KEY, name: "ci", namespace: "team-a", expires_at: "Never" };

#[test]
fn every_case_becomes_what_is_said_or_is_refused_in_these_words() {
    let mut rows = 0;
    for row in include_str!("../../../../tests/cases/secret-texts.tsv").lines().filter(|line| !line.starts_with('#')) {
        let [text, verdict, expected] = row.split('\t').collect::<Vec<_>>()[..] else { panic!("{row}: 3 columns") };
        let unescaped = |column: &str| serde_json::from_str::<String>(&format!("\"{column}\"")).unwrap();
        let answer = Text::parse(&unescaped(text));
        match verdict {
            "accept" => assert_eq!(answer.unwrap().render(VALUES), unescaped(expected), "{row}"),
            _ => assert_eq!(answer.unwrap_err().to_string(), expected, "{row}"),
        }
        rows += 1;
    }
    assert!(rows > 25, "{rows}");
}

#[test]
fn a_value_that_looks_like_a_variable_is_only_a_value() {
    let text = Text::parse("$(NAME)$(NAMESPACE)").unwrap();
    let values = Values { name: "$(NAMES", namespace: "PACE)$$", ..VALUES };
    assert_eq!(text.render(values), "$(NAMESPACE)$$");
}

#[test]
fn an_entry_that_somebody_changed_is_not_taken_for_rendered() {
    let text = Text::parse("a $(KEY) b").unwrap();
    let rendered = text.render(VALUES);
    assert!(text.is_rendered_in(rendered.as_bytes(), VALUES));
    for other in ["", "a ", &rendered[1..], &rendered[..rendered.len() - 1], &format!("{rendered}c")] {
        assert!(!text.is_rendered_in(other.as_bytes(), VALUES), "{other}");
    }
    assert!(!text.is_rendered_in(rendered.replace(KEY, crate::testing::OTHER_KEY).as_bytes(), VALUES));
}

#[test]
fn both_types_are_read_by_their_names() {
    for secret_type in SecretType::ALL {
        assert_eq!(SecretType::parse(secret_type.as_str()), Some(secret_type));
    }
    assert_eq!(SecretType::parse("opaque"), None);
    assert_eq!(SecretType::default(), SecretType::Opaque);
}

proptest! {
    #[test]
    fn any_text_can_be_said_with_its_dollars_doubled(text in any::<String>()) {
        let parsed = Text::parse(&text.replace('$', "$$")).unwrap();
        prop_assert_eq!(parsed.render(VALUES), text);
    }

    #[test]
    fn what_was_rendered_is_known_again(text in "([a$() \n]|\\$\\(KEY\\)|\\$\\(NAME\\)|\\$\\$){0,12}", other in any::<Vec<u8>>()) {
        if let Ok(parsed) = Text::parse(&text) {
            let rendered = parsed.render(VALUES);
            prop_assert!(parsed.is_rendered_in(rendered.as_bytes(), VALUES));
            prop_assert_eq!(rendered.capacity(), rendered.len(), "no copy is left behind");
            prop_assert_eq!(parsed.is_rendered_in(&other, VALUES), other == rendered.as_bytes());
        }
    }
}

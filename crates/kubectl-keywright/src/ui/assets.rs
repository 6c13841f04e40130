//! The files of the page, inside the program.

/// One file of the page.
pub struct Asset {
    /// Its path.
    pub path: &'static str,
    /// Its `Content-Type`.
    pub content_type: &'static str,
    /// What is in it.
    pub content: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

macro_rules! assets {
    ($($content_type:ident $path:literal $file:literal)*) => {
        &[$(Asset { path: $path, content_type: $content_type, content: include_str!(concat!("../../page/", $file)) }),*]
    };
}

impl Asset {
    /// The content as it is sent: without indentation, empty lines and comments. No text of the page goes over several lines.
    pub fn lean(&self) -> String {
        let is_comment = |line: &str| match self.content_type {
            SCRIPT => line.starts_with("//") || line.starts_with("/**") && line.ends_with("*/"),
            STYLE => line.starts_with("/*") && line.ends_with("*/"),
            _ => false,
        };
        let lines = self.content.lines().map(str::trim).filter(|line| !line.is_empty() && !is_comment(line));
        let lean: String = lines.flat_map(|line| [line, "\n"]).collect();
        let spaces = [(": ", ":"), ("; ", ";"), (", ", ","), (" {", "{"), ("{ ", "{"), (";}", "}")];
        match self.content_type {
            STYLE => spaces.into_iter().fold(lean, |style, (wide, narrow)| style.replace(wide, narrow)),
            _ => lean,
        }
    }
}

/// All files of the page.
pub const ASSETS: &[Asset] = assets! {
    HTML "/" "index.html"
    STYLE "/page.css" "page.css"
    IMAGE "/icon.svg" "icon.svg"
    SCRIPT "/page.js" "page.js"
    SCRIPT "/create.js" "create.js"
    SCRIPT "/details.js" "details.js"
    SCRIPT "/dom.js" "dom.js"
    SCRIPT "/edit.js" "edit.js"
    SCRIPT "/fields.js" "fields.js"
    SCRIPT "/form.js" "form.js"
    SCRIPT "/list.js" "list.js"
    SCRIPT "/revoke.js" "revoke.js"
    SCRIPT "/rows.js" "rows.js"
    SCRIPT "/server.js" "server.js"
    SCRIPT "/take.js" "take.js"
    SCRIPT "/time.js" "time.js"
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_of_the_page_is_served() {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/page")).unwrap();
        let files: BTreeSet<String> = folder
            .map(|file| format!("/{}", file.unwrap().file_name().display()).replace("/index.html", "/"))
            .collect();
        let served: BTreeSet<String> = ASSETS.iter().map(|asset| asset.path.to_owned()).collect();
        assert_eq!(served, files);
    }

    #[test]
    fn the_page_is_small() {
        let size: usize = ASSETS.iter().map(|asset| asset.lean().len()).sum();
        assert!(size <= 60_000, "{size} bytes: HTML, CSS and JavaScript have 60 kB");
    }

    #[test]
    fn no_text_of_a_script_goes_over_several_lines() {
        for asset in ASSETS.iter().filter(|asset| asset.content_type == SCRIPT) {
            for (number, line) in asset.content.lines().enumerate().filter(|(_, line)| !line.trim().starts_with("//")) {
                assert!(line.matches('`').count() % 2 == 0, "{}:{}", asset.path, number + 1);
            }
        }
    }

    #[test]
    fn nothing_in_the_page_needs_more_than_its_policy_allows() {
        for asset in ASSETS {
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacent",
                "document.write",
                "eval(",
                " style=",
                "onclick=",
                "http://",
                "https://",
            ] {
                let allowed = forbidden == "http://" && asset.path == "/icon.svg";
                assert!(allowed || !asset.content.contains(forbidden), "{}: {forbidden}", asset.path);
            }
        }
    }
}

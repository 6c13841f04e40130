//! A table for a terminal of any width.

use unicode_width::UnicodeWidthStr;

use crate::view::escape::escape;
use crate::view::state::Tone;

/// Columns between two columns.
const GAP: usize = 2;

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The header.
    pub title: &'static str,
    /// When it gives way to a narrow terminal: the lowest first. `None`: never.
    pub gives_way: Option<u8>,
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Option<Tone>,
}

/// A table.
#[derive(Clone, Debug)]
pub struct Table {
    /// What it shows.
    pub columns: Vec<Column>,
    /// Each with a cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

impl Column {
    /// A column that stays.
    pub const fn new(title: &'static str) -> Self {
        Self { title, gives_way: None }
    }

    /// A column that gives way in this order.
    pub const fn giving_way(title: &'static str, order: u8) -> Self {
        Self { title, gives_way: Some(order) }
    }
}

impl Cell {
    /// A text, made safe for a terminal. Nothing is `-`.
    pub fn new(text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        Self { text: if text.is_empty() { "-".to_owned() } else { escape(text).into_owned() }, tone: None }
    }

    /// The same, in the colour of its tone.
    pub fn toned(text: impl AsRef<str>, tone: Tone) -> Self {
        Self { tone: Some(tone), ..Self::new(text) }
    }
}

impl Table {
    /// The table in lines of at most `width` columns, as far as columns give way, and the titles of those that have. No cell
    /// is cut; one that is wider than the terminal goes on in its next line, and widens no other row. Without a width nothing gives way.
    pub fn render(&self, width: Option<usize>) -> (String, Vec<&'static str>) {
        let widths = self.widths(width.unwrap_or(usize::MAX));
        let mut dropped = Vec::new();
        while let Some(limit) = width
            && self.total(&widths, &dropped) > limit
        {
            let candidates = self.columns.iter().enumerate().filter(|(index, _)| !dropped.contains(index));
            let next = candidates.filter_map(|(index, column)| Some((column.gives_way?, index))).min();
            let Some((_, index)) = next else { break };
            dropped.push(index);
        }
        let header: Vec<_> =
            self.columns.iter().map(|column| Cell { text: column.title.to_owned(), tone: None }).collect();
        let lines = std::iter::once(&header).chain(&self.rows).map(|row| line(row, &widths, &dropped));
        let text = lines.collect();
        let title = |index: &usize| self.columns.get(*index).map_or("", |column| column.title);
        (text, dropped.iter().map(title).collect())
    }

    /// The width of each column, by its cells that fit into `limit`.
    fn widths(&self, limit: usize) -> Vec<usize> {
        let cells = |index: usize| self.rows.iter().filter_map(move |row| row.get(index));
        let of_rows = |index: usize| cells(index).map(|cell| cell.text.width()).filter(|width| *width <= limit);
        let columns = self.columns.iter().enumerate();
        columns.map(|(index, column)| of_rows(index).max().unwrap_or(0).max(column.title.width())).collect()
    }

    fn total(&self, widths: &[usize], dropped: &[usize]) -> usize {
        let shown: Vec<_> = widths.iter().enumerate().filter(|(index, _)| !dropped.contains(index)).collect();
        shown.iter().map(|(_, width)| *width).sum::<usize>() + GAP * shown.len().saturating_sub(1)
    }
}

fn line(row: &[Cell], widths: &[usize], dropped: &[usize]) -> String {
    let mut line = String::new();
    let cells = row.iter().zip(widths).enumerate().filter(|(index, _)| !dropped.contains(index));
    let mut padding = 0;
    for (_, (cell, width)) in cells {
        line.push_str(&" ".repeat(padding));
        line.push_str(&coloured(&cell.text, cell.tone));
        padding = width.saturating_sub(cell.text.width()) + GAP;
    }
    line + "\n"
}

/// `text` in the colour of its tone, for a stream that takes colours off where none belong.
pub fn coloured(text: &str, tone: Option<Tone>) -> String {
    let code = match tone {
        None => return text.to_owned(),
        Some(Tone::Good) => 32,
        Some(Tone::Quiet) => 2,
        Some(Tone::Info) => 36,
        Some(Tone::Warn) => 33,
        Some(Tone::Bad) => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let cells = |texts: [&str; 3]| texts.map(Cell::new).to_vec();
        Table {
            columns: vec![Column::new("NAME"), Column::giving_way("OWNER", 1), Column::giving_way("CREATED", 0)],
            rows: vec![cells(["nightly-ci", "ann@x", "3d"]), cells(["鍵", "", "2 Nov 2025"])],
        }
    }

    #[test]
    fn columns_line_up_and_a_pipe_gets_all_of_them() {
        let expected = "NAME        OWNER  CREATED\nnightly-ci  ann@x  3d\n鍵          -      2 Nov 2025\n";
        assert_eq!(table().render(None), (expected.to_owned(), vec![]));
        assert_eq!(table().render(Some(29)).0, expected);
    }

    #[test]
    fn a_narrow_terminal_gets_fewer_columns_and_whole_names() {
        let (text, dropped) = table().render(Some(28));
        assert_eq!((text.lines().next(), dropped), (Some("NAME        OWNER"), vec!["CREATED"]));
        let (text, dropped) = table().render(Some(4));
        assert_eq!((&*text, dropped), ("NAME\nnightly-ci\n鍵\n", vec!["CREATED", "OWNER"]));
    }

    #[test]
    fn a_name_that_is_wider_than_the_terminal_widens_no_other_row() {
        let mut table = table();
        let long = "x".repeat(242);
        table.rows.push([&*long, "bob", "1d"].map(Cell::new).to_vec());
        let expected = format!("NAME        OWNER\nnightly-ci  ann@x\n鍵          -\n{long}  bob\n");
        assert_eq!(table.render(Some(28)).0, expected);
        assert!(table.render(None).0.starts_with(&format!("NAME{}OWNER", " ".repeat(240))), "a pipe gets all in line");
    }

    #[test]
    fn colours_cost_no_width_and_texts_no_harm() {
        let mut table = table();
        table.rows = vec![vec![Cell::toned("Active", Tone::Good), Cell::new("a\u{1b}[2J"), Cell::new("x")]];
        assert_eq!(table.render(None).0.lines().nth(1), Some("\u{1b}[32mActive\u{1b}[0m  a\\u{1b}[2J  x"));
    }
}

//! Text in columns.

use std::fmt::Write;

use unicode_width::UnicodeWidthStr;

/// Between columns.
const GAP: usize = 2;

/// Lines of cells, each as wide as the widest of its column and `width_min` at least.
pub fn table<const N: usize>(
    header: Option<[&str; N]>,
    rows: &[[String; N]],
    width_min: usize,
) -> String {
    let header = header.map(|header| header.map(str::to_owned).to_vec());
    let lines = header.into_iter();
    let lines: Vec<_> = lines.chain(rows.iter().map(|row| row.to_vec())).collect();
    columns(&lines, width_min)
}

/// As [`table`], of as many columns as each line has. The last is as wide as it is.
pub fn columns(lines: &[Vec<String>], width_min: usize) -> String {
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells
            .map(|cell| cell.width())
            .max()
            .unwrap_or(0)
            .max(width_min)
    };
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..count).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| cell.clone() + &" ".repeat(width - cell.width() + GAP))
            .collect();
        // Cannot fail: the target is memory.
        let _ = writeln!(text, "{}", cells.concat().trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = [
            row(["0123456789ab", "a", "n"]),
            row(["x", "日本", "n"]),
            row(["y", "e\u{301}", "n"]),
        ];
        let text = table(Some(["ID", "NAME", "X"]), &rows, 0);
        assert!(text.starts_with("ID            NAME  X\n"), "{text}");
        let columns: Vec<_> = text.lines().map(UnicodeWidthStr::width).collect();
        assert_eq!(columns, [columns[0]; 4], "{text}");
        let text = table(None, &rows[..1], 4);
        assert_eq!(text, "0123456789ab  a     n\n");
    }
}

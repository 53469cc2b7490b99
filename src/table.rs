//! Tables as text.

/// Lays rows out with aligned columns, two blanks between them. A row may have fewer cells than another.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [&["é", "bc"][..], &["def"], &["", "g", "h"]];
        let rows = rows.map(|row| row.iter().map(ToString::to_string).collect());
        assert_eq!(aligned(&rows), "é    bc\ndef\n     g   h\n");
        assert_eq!(aligned(&[]), "");
    }
}

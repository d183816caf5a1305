//! The shortest line-by-line difference of two transcripts.

/// Lines only in `left`, marked `- `, and only in `right`, marked `+ `, in order; empty if the two
/// are equal.
pub(super) fn diff(left: &[String], right: &[String]) -> Vec<String> {
    // common[i][j]: length of the longest common subsequence of left[i..] and right[j..].
    // Transcripts are short.
    let mut common = vec![vec![0; right.len() + 1]; left.len() + 1];
    for i in (0..left.len()).rev() {
        for j in (0..right.len()).rev() {
            common[i][j] = if left[i] == right[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let mut lines = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < left.len() || j < right.len() {
        if i < left.len() && j < right.len() && left[i] == right[j] {
            i += 1;
            j += 1;
        } else if j == right.len() || (i < left.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(format!("- {}", left[i]));
            i += 1;
        } else {
            lines.push(format!("+ {}", right[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::diff;

    fn lines(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn equal_transcripts_do_not_differ() {
        assert!(diff(&lines("a b c"), &lines("a b c")).is_empty());
        assert!(diff(&[], &[]).is_empty());
    }

    #[test]
    fn a_changed_an_added_and_a_missing_line_are_all_shown() {
        assert_eq!(diff(&lines("a b c"), &lines("a x c")), ["- b", "+ x"]);
        assert_eq!(diff(&lines("a c"), &lines("a b c")), ["+ b"]);
        assert_eq!(diff(&lines("a b c"), &lines("a b")), ["- c"]);
    }
}

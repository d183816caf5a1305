//! Shell wildcards, fnmatch(3) with FNM_CASEFOLD: `*`, `?`, `[a-z]`, `[!a-z]` and `\` before a
//! character that is to be taken as it is. Pattern from the command line, text from a certificate.

/// Whether `text` as a whole is what `pattern` describes, whatever the case.
///
/// Takes time proportional to the product of the lengths at worst: of the stars seen so far
/// only the last one need ever be reconsidered.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let fold = |s: &str| s.chars().flat_map(char::to_lowercase).collect::<Vec<_>>();
    let (pattern, text) = (fold(pattern), fold(text));
    let (mut p, mut t) = (0, 0);
    // Where the pattern goes on after the last star, and the text that the star has eaten up to.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&'*') {
            p += 1;
            star = Some((p, t));
        } else if let Some(next) = one(&pattern, p, text[t]) {
            p = next;
            t += 1;
        } else if let Some((after, eaten)) = &mut star {
            *eaten += 1;
            (p, t) = (*after, *eaten);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// Where the pattern goes on if what stands at `p` matches `c`.
fn one(pattern: &[char], p: usize, c: char) -> Option<usize> {
    match *pattern.get(p)? {
        '?' => Some(p + 1),
        '\\' => match pattern.get(p + 1) {
            Some(&escaped) => (escaped == c).then_some(p + 2),
            None => None,
        },
        '[' => match bracket(pattern, p + 1, c) {
            Some((matched, end)) => matched.then_some(end),
            // Without an end it is an ordinary character.
            None => (c == '[').then_some(p + 1),
        },
        literal => (literal == c).then_some(p + 1),
    }
}

/// A bracket expression whose inside begins at `p`: whether it matches, and where it ends.
fn bracket(pattern: &[char], mut p: usize, c: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(p), Some('!' | '^'));
    p += usize::from(negated);
    let first = p;
    let mut found = false;
    loop {
        let mut from = *pattern.get(p)?;
        if from == ']' && p > first {
            return Some((found != negated, p + 1));
        }
        if from == '\\' {
            p += 1;
            from = *pattern.get(p)?;
        }
        let mut to = from;
        if pattern.get(p + 1) == Some(&'-') && !matches!(pattern.get(p + 2), None | Some(']')) {
            p += 2;
            to = pattern[p];
        }
        found |= (from..=to).contains(&c);
        p += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn wildcards_match_as_in_the_shell() {
        for (pattern, text, expected) in [
            ("CN=Alice", "cn=ALICE", true),
            ("CN=Alice", "CN=Alice2", false),
            ("*", "", true),
            ("", "a", false),
            ("CN=*,O=Example", "CN=a,O=b,O=Example", true),
            ("*a*b*c", "xaxbxbxc", true),
            ("*a*b*c", "xaxbxbxcx", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a[0-9]c", "a5c", true),
            ("a[!0-9]c", "a5c", false),
            ("a[^0-9]c", "axc", true),
            ("[]x]", "]", true),
            ("[a-]", "-", true),
            ("a\\*c", "a*c", true),
            ("a\\*c", "abc", false),
            ("[abc", "[abc", true),
            ("\\", "\\", false),
            ("*/x", "a/b/x", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn hostile_patterns_end() {
        assert!(!matches(&"a*".repeat(50), &"a".repeat(5000).replace("aaaa", "ab")[..40]));
        assert!(!matches(&format!("{}b", "*a".repeat(200)), &"a".repeat(4000)));
    }
}

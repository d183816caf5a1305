//! What a test needs to know of a page in mdoc(7).

use crate::root;

/// A manual page.
pub(crate) struct Page {
    /// `nbdkit-cow-filter`.
    pub(crate) name: String,
    /// `1` or `3`.
    pub(crate) section: String,
    pub(crate) text: String,
}

/// An example, a literal display.
pub(crate) struct Example {
    /// The line of the page, from 1.
    pub(crate) line: usize,
    /// Why it is not run.
    pub(crate) not_run: Option<String>,
    /// The file that has this text.
    pub(crate) file: Option<String>,
    pub(crate) text: String,
}

/// All pages, in alphabetical order.
pub(crate) fn pages() -> Vec<Page> {
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(root().join("man")).expect("man") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let section = path.extension().expect("a section").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("UTF-8");
        pages.push(Page { name, section, text });
    }
    pages.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(pages.len() > 80, "{} pages", pages.len());
    pages
}

/// The page of this name.
pub(crate) fn page(name: &str) -> Page {
    let page = pages().into_iter().find(|page| page.name == name);
    page.unwrap_or_else(|| panic!("there is no page {name}"))
}

impl Page {
    /// `nbdkit-cow-filter(1)`.
    pub(crate) fn title(&self) -> String {
        format!("{}({})", self.name, self.section)
    }

    /// The lines of a section.
    pub(crate) fn section_lines(&self, heading: &str) -> Vec<&str> {
        let heading = format!(".Sh {heading}");
        let lines = self.text.lines().skip_while(|line| *line != heading).skip(1);
        lines.take_while(|line| !line.starts_with(".Sh ")).collect()
    }

    /// The arguments of all macros of this name that begin a line.
    pub(crate) fn macros(&self, name: &str) -> Vec<&str> {
        let start = format!(".{name} ");
        self.text.lines().filter_map(|line| line.strip_prefix(&*start)).collect()
    }

    /// Names and sections of the pages that it refers to.
    pub(crate) fn references(&self) -> Vec<(&str, &str)> {
        let words = |line| str::split_ascii_whitespace(line).collect::<Vec<_>>();
        let lines = self.text.lines().filter(|line| line.starts_with('.')).map(words);
        let found = lines.flat_map(|line| {
            let is_reference = |words: &[&'_ str]| words[0].trim_start_matches('.') == "Xr";
            let found = line.windows(3).filter(|words| is_reference(words));
            found.map(|words| (words[1], words[2])).collect::<Vec<_>>()
        });
        found.collect()
    }

    /// What is displayed literally. A comment before it says what is to be done with it.
    pub(crate) fn examples(&self) -> Vec<Example> {
        let mut examples = Vec::new();
        let mut lines = self.text.lines().enumerate();
        let mut comment = "";
        while let Some((number, line)) = lines.next() {
            if line.starts_with(".Bd -literal") {
                let body = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != ".Ed");
                let text: String = body.map(|line| unescaped(line) + "\n").collect();
                let note = |name| comment.strip_prefix(name).map(str::to_owned);
                let (not_run, file) = (note("not run: "), note("file: "));
                examples.push(Example { line: number + 1, not_run, file, text });
            }
            comment = line.strip_prefix(".\\\" ").unwrap_or_default();
        }
        examples
    }
}

/// A line of a literal display as a reader sees it.
fn unescaped(line: &str) -> String {
    line.strip_prefix("\\&").unwrap_or(line).replace("\\e", "\\")
}

#[test]
fn examples_are_what_a_reader_sees() {
    let text = "a\n.\\\" file: x\n.Bd -literal -offset indent\none \\e\n\\&.two\n.Ed\n.Pp\n.Bd -literal\nthree\n.Ed\n";
    let page = Page { name: String::new(), section: String::new(), text: text.to_owned() };
    let examples = page.examples();
    assert_eq!(examples[0].text, "one \\\n.two\n");
    assert_eq!(examples[0].file.as_deref(), Some("x"));
    assert_eq!((examples[1].line, examples[1].file.as_deref()), (8, None));
}

//! nbdkit-exportname-filter(1): changes which export names clients see and may ask for, which one
//! "" stands for, and how they are described.

use std::sync::Arc;

use nbdkit_api::exports::MAX_STRING;
use nbdkit_api::{
    Client, DataPath, Direction, Errno, Error, Exports, Filter, Layer, Needs, Next, NextConfig,
    Open, OpenLayer, Result, Slot, Value, debug, quoted,
};

use crate::shell;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum ListMode {
    #[default]
    Keep,
    Error,
    Empty,
    DefaultOnly,
    Explicit,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
enum Description {
    #[default]
    Keep,
    None,
    Fixed(String),
    Script(String),
}

/// The filter: its parameters.
#[derive(Debug, Default)]
pub struct ExportName {
    /// `None` leaves the choice to the plugin; "" too, but then clients do not learn what it chose.
    default: Option<String>,
    list: ListMode,
    strict: bool,
    explicit: Vec<String>,
    description: Arc<Description>,
}

impl Filter for ExportName {
    fn name(&self) -> &str {
        "exportname"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit exportname filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "default-export=<NAME>     Canonical name for the \"\" default export.\n\
             exportname-list=<MODE>    Which exports to advertise: keep (default), error,\n\
             \x20                         empty, defaultonly, explicit.\n\
             exportname-strict=<BOOL>  Limit clients to explicit exports (default false).\n\
             exportname=<NAME>         Add an explicit export name, may be repeated.\n\
             exportdesc=<MODE>         Set descriptions according to mode: keep (default),\n\
             \x20                         none, fixed:STRING, script:SCRIPT.",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "default-export" => self.default = Some(short(key, value.str()?)?),
            "exportname-list" => {
                self.list = match value.str()? {
                    "keep" => ListMode::Keep,
                    "error" => ListMode::Error,
                    "empty" => ListMode::Empty,
                    "defaultonly" => ListMode::DefaultOnly,
                    "explicit" => ListMode::Explicit,
                    other => {
                        return Err(Error::msg(format!(
                            "unrecognized exportname-list mode: {other}"
                        )));
                    }
                }
            }
            "exportname-strict" => self.strict = value.boolean()?,
            "exportname" => self.explicit.push(short(key, value.str()?)?),
            "exportdesc" => {
                let text = value.str()?;
                self.description = Arc::new(if let Some(fixed) = text.strip_prefix("fixed:") {
                    Description::Fixed(short(key, fixed)?)
                } else if let Some(script) = text.strip_prefix("script:") {
                    Description::Script(script.to_owned())
                } else {
                    match text {
                        "keep" => Description::Keep,
                        "none" => Description::None,
                        _ => {
                            return Err(Error::msg(format!(
                                "unrecognized exportdesc mode: {text}"
                            )));
                        }
                    }
                });
            }
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        match *self.description {
            Description::Script(_) => below.programs(),
            Description::Keep | Description::None | Description::Fixed(_) => below,
        }
    }

    fn list_exports(
        &self,
        below: &Arc<Layer>,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        match self.list {
            ListMode::Keep => {
                let mut source = Exports::new();
                below.list_exports(client, readonly, &mut source)?;
                for export in &source {
                    let description = export.description.clone();
                    exports.add(
                        export.name.as_str(),
                        self.description.of(&export.name, || description),
                    )?;
                }
            }
            ListMode::Error => {
                return Err(Error::new(Errno::EINVAL, "export list restricted by policy"));
            }
            ListMode::Empty => {}
            ListMode::DefaultOnly => {
                if let Some(name) = self.default_export(below, client, readonly)? {
                    let description = self.description.of(&name, || None);
                    exports.add(name, description)?;
                }
            }
            ListMode::Explicit => {
                for name in &self.explicit {
                    exports.add(name.as_str(), self.description.of(name, || None))?;
                }
            }
        }
        Ok(())
    }

    /// None if a strict filter does not list "" itself: the server then refuses it.
    ///
    /// A strict filter answers with listed names only. Where "" is listed and the name that it
    /// stands for is not, the answer is "" and [`open`](Filter::open) finds the name: a client that
    /// asks for that name is refused.
    fn default_export(
        &self,
        below: &Arc<Layer>,
        client: &Arc<Client>,
        readonly: bool,
    ) -> Result<Option<String>> {
        if self.strict && !self.lists("") {
            return Ok(None);
        }
        match &self.default {
            Some(name) if !self.strict || self.lists(name) => Ok(Some(name.clone())),
            None if !self.strict => below.default_export(client, readonly),
            Some(_) | None => Ok(Some(String::new())),
        }
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        if self.strict && !self.lists(open.export) {
            let name = quoted(open.export);
            return Err(Error::new(Errno::ENOENT, format!("export '{name}' not found")));
        }
        let name = match &self.default {
            Some(default) if open.export.is_empty() => default.as_str(),
            Some(_) | None => open.export,
        };
        below.open(&open.export(name))?;
        Ok(Box::new(Handle { name: name.to_owned(), description: Arc::clone(&self.description) }))
    }
}

impl ExportName {
    fn lists(&self, name: &str) -> bool {
        self.explicit.iter().any(|listed| listed == name)
    }
}

/// Checks the protocol's limit for strings.
fn short(key: &str, text: &str) -> Result<String> {
    if text.len() > MAX_STRING {
        return Err(Error::msg(format!("{key}: longer than {MAX_STRING} bytes")));
    }
    Ok(text.to_owned())
}

impl Description {
    /// The description of export `name`; `keep` is the plugin's own.
    fn of(&self, name: &str, keep: impl FnOnce() -> Option<String>) -> Option<String> {
        match self {
            Description::Keep => keep(),
            Description::None => None,
            Description::Fixed(text) => Some(text.clone()),
            Description::Script(script) => from_script(script, name),
        }
    }
}

/// What the script prints without its last newline, if it is text that fits.
fn from_script(script: &str, name: &str) -> Option<String> {
    let printed = match shell::output(script, &[("name", name)], MAX_STRING as u64 + 2) {
        Ok(printed) => printed,
        Err(error) => {
            debug!("exportdesc: {error}");
            return None;
        }
    };
    let mut text = String::from_utf8(printed).ok()?;
    if text.ends_with('\n') {
        text.pop();
    }
    (!text.is_empty() && text.len() <= MAX_STRING).then_some(text)
}

struct Handle {
    name: String,
    description: Arc<Description>,
}

impl OpenLayer for Handle {
    fn export_description(&self, next: &Next) -> Option<String> {
        self.description.of(&self.name, || next.export_description())
    }

    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};

    fn list(params: &[(&str, &str)]) -> Result<Vec<(String, Option<String>)>> {
        let layer = testing::layer(&Arc::new(Disk::new(512)), &["exportname"], params);
        let mut exports = Exports::new();
        layer.list_exports(&testing::client(), false, &mut exports)?;
        Ok(exports.iter().map(|e| (e.name.clone(), e.description.clone())).collect())
    }

    fn names(params: &[(&str, &str)]) -> Vec<String> {
        list(params).unwrap().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn the_list_is_as_the_mode_says() {
        assert_eq!(names(&[]), ["one", "two"]);
        assert!(names(&[("exportname-list", "empty")]).is_empty());
        assert_eq!(names(&[("exportname-list", "defaultonly")]), ["one"]);
        let params = [("exportname-list", "defaultonly"), ("default-export", "x")];
        assert_eq!(names(&params), ["x"]);
        let params = [("exportname-list", "explicit"), ("exportname", "a"), ("exportname", "")];
        assert_eq!(names(&params), ["a", ""]);
        assert_eq!(
            list(&[("exportname-list", "error")]).unwrap_err().message(),
            "export list restricted by policy"
        );
    }

    #[test]
    fn descriptions_are_as_the_mode_says() {
        let first = |desc| list(&[("exportdesc", desc)]).unwrap().swap_remove(0).1;
        assert_eq!(first("keep").unwrap(), "first");
        assert_eq!(first("none"), None);
        assert_eq!(first("fixed:a b").unwrap(), "a b");
        assert_eq!(first("script:printf '<%s>\\n\\n' \"$name\"; exit 3").unwrap(), "<one>\n");
        assert_eq!(first("script:kill $$"), None);
        assert_eq!(first("script:yes"), None);
    }

    #[test]
    fn open_resolves_the_default_export_and_describes_it() {
        let disk = Arc::new(Disk::new(512));
        let params = [("default-export", "two"), ("exportdesc", "script:echo \"[$name]\"")];
        let layer = testing::layer(&disk, &["exportname"], &params);
        let backend = testing::open(&layer);
        assert_eq!(disk.take_calls(), ["open \"two\" readonly=false"]);
        assert_eq!(backend.export_description().unwrap(), "[two]");
        let backend = testing::try_open(&layer, "$(id)", false).unwrap();
        assert_eq!(backend.export_description().unwrap(), "[$(id)]");
        let layer = testing::layer(&disk, &["exportname"], &[]);
        assert_eq!(testing::open(&layer).export_description().unwrap(), "about \"one\"");
        let params = [("exportdesc", "script:echo \"[$name]\"")];
        let layer = testing::layer(&disk, &["exportname"], &params);
        assert_eq!(testing::open(&layer).export_description().unwrap(), "[one]");
    }

    #[test]
    fn strict_permits_only_what_was_listed() {
        let disk = Arc::new(Disk::new(512));
        let params = [("exportname", "a"), ("exportname-strict", "true"), ("default-export", "a")];
        let layer = testing::layer(&disk, &["exportname"], &params);
        testing::try_open(&layer, "a", false).unwrap();
        assert_eq!(
            testing::try_open(&layer, "b\n", false).unwrap_err().message(),
            "export 'b\\n' not found"
        );
        assert_eq!(
            testing::try_open(&layer, "", false).unwrap_err().message(),
            "default export (\"\") not permitted"
        );
        let params = [("exportname", ""), ("exportname-strict", "true"), ("default-export", "b")];
        let layer = testing::layer(&disk, &["exportname"], &params);
        disk.take_calls();
        testing::open(&layer);
        assert_eq!(disk.take_calls(), ["open \"b\" readonly=false"]);
        assert!(testing::try_open(&layer, "a", false).is_err());
        assert!(testing::try_open(&layer, "b", false).is_err(), "only \"\" was listed");
    }

    #[test]
    fn unknown_modes_are_refused() {
        assert_eq!(
            testing::config_error("exportname", &[("exportname-list", "x")]),
            "unrecognized exportname-list mode: x"
        );
        assert_eq!(
            testing::config_error("exportname", &[("exportdesc", "x")]),
            "unrecognized exportdesc mode: x"
        );
    }
}

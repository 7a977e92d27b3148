//! Takes values out of a TOML document by the table of settings, and remembers on which line each stood.
//!
//! It knows types and ranges, nothing about what a setting is for. What was never asked for is unknown.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dwcp_hints::check_address;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::table::{Allowed, Preset, SETTINGS, Setting};
use super::{Fault, Mode, Origin, SettingsError};

/// Addresses in one list.
pub(super) const HOSTS_MAX: usize = 16;

pub(super) struct Reader {
    path: PathBuf,
    mode: Mode,
    /// By dotted key. Bounded by the file.
    found: BTreeMap<String, (usize, Value)>,
    lines: BTreeMap<&'static str, usize>,
    asked: Vec<&'static str>,
}

enum Value {
    Text(String),
    Number(i64),
    /// An integer that fits no i64.
    Huge,
    Other(&'static str),
}

impl Reader {
    pub(super) fn new(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let table = DeTable::parse(text).map_err(|error| SettingsError {
            path: path.into(),
            line: error.span().map(|span| line_of(text, span.start)),
            fault: Fault::NotToml(error.message().replace('\n', ", ")),
        })?;
        let mut found = BTreeMap::new();
        collect(text, "", table.get_ref(), &mut found);
        let asked = Vec::with_capacity(SETTINGS.len());
        Ok(Self { path: path.into(), mode: Mode::Internet, found, lines: BTreeMap::new(), asked })
    }

    /// From here on defaults are this mode's.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    pub(super) fn number(&mut self, key: &'static str) -> Result<u64, SettingsError> {
        let setting = self.ask(key);
        let (zero, min, max) = match setting.allowed {
            Allowed::Number { min, max } => (false, min, max),
            Allowed::ZeroOr { min, max } => (true, min, max),
            _ => panic!("{key} is a number in the table"),
        };
        let (line, value) = match self.found.remove(key) {
            None => return setting.preset.number(self.mode).ok_or_else(|| self.missing(setting)),
            Some((line, Value::Number(value))) => (line, value),
            Some((line, Value::Huge)) => (line, i64::MAX),
            Some((line, other)) => {
                let unit =
                    if setting.unit.is_empty() { String::new() } else { format!(" of {}", setting.unit) };
                return Err(self.wrong_type(key, line, &other, format!("a number{unit}, without quotes")));
            }
        };
        let fits = |value: &u64| (min..=max).contains(value) || (zero && *value == 0);
        match u64::try_from(value).ok().filter(fits) {
            Some(value) => Ok(value),
            None => {
                let range = format!("{} {}", setting.allowed_text(), setting.unit);
                Err(self.at(line, Fault::OutOfRange { key, value, range: range.trim_end().into() }))
            }
        }
    }

    /// A number that counts things in memory.
    pub(super) fn size(&mut self, key: &'static str) -> Result<usize, SettingsError> {
        // A 32-bit machine cannot hold more than it can count.
        Ok(usize::try_from(self.number(key)?).unwrap_or(usize::MAX))
    }

    pub(super) fn word(&mut self, key: &'static str) -> Result<String, SettingsError> {
        let setting = self.ask(key);
        let Allowed::Words(words) = setting.allowed else { panic!("{key} is a word in the table") };
        let Some((line, value)) = self.text(setting)? else {
            let Preset::Word(word) = setting.preset else { return Err(self.missing(setting)) };
            return Ok(word.into());
        };
        if words.contains(&value.as_str()) {
            return Ok(value);
        }
        Err(self.at(line, Fault::NotAWord { key, value, allowed: setting.allowed_text() }))
    }

    /// Prefixes of keys; none when nothing is said.
    pub(super) fn prefixes(&mut self, key: &'static str) -> Result<Vec<Bytes>, SettingsError> {
        let text = self.list(key)?.map_or(String::new(), |(_, text)| text);
        Ok(text.split_whitespace().map(|prefix| Bytes::from(prefix.to_string())).collect())
    }

    /// Addresses of peers by number; none when nothing is said.
    pub(super) fn peers(&mut self, key: &'static str) -> Result<BTreeMap<u8, String>, SettingsError> {
        let Some((line, text)) = self.list(key)? else { return Ok(BTreeMap::new()) };
        let read = |word: &str| {
            let (id, address) = word.split_once('=')?;
            let is_address = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            Some((id.parse().ok()?, address.to_string())).filter(|_| is_address)
        };
        let peers: Option<BTreeMap<u8, String>> = text.split_whitespace().map(read).collect();
        peers.ok_or_else(|| self.at(line, Fault::NotPeers { key, value: text }))
    }

    /// One address of the other replicas' world; none when nothing is said.
    pub(super) fn host(&mut self, key: &'static str) -> Result<Option<String>, SettingsError> {
        let Some((line, value)) = self.list(key)? else { return Ok(None) };
        match check_address(&value) {
            true => Ok(Some(value)),
            false => Err(self.at(line, Fault::NotAHost { key, value })),
        }
    }

    /// Addresses; none when nothing is said.
    pub(super) fn hosts(&mut self, key: &'static str) -> Result<Vec<String>, SettingsError> {
        let Some((line, text)) = self.list(key)? else { return Ok(Vec::new()) };
        let hosts: Vec<String> = text.split_whitespace().map(String::from).collect();
        if let Some(value) = hosts.iter().find(|host| !check_address(host)) {
            let value = value.clone();
            return Err(self.at(line, Fault::NotAHost { key, value }));
        }
        match hosts.len() > HOSTS_MAX {
            true => Err(self.at(line, Fault::TooManyHosts { key, count: hosts.len(), max: HOSTS_MAX })),
            false => Ok(hosts),
        }
    }

    /// A text that may be empty, which is the same as nothing.
    fn list(&mut self, key: &'static str) -> Result<Option<(usize, String)>, SettingsError> {
        let setting = self.ask(key);
        if let Some((_, Value::Text(text))) = self.found.get(key)
            && text.is_empty()
        {
            self.found.remove(key);
        }
        self.text(setting)
    }

    /// A path, resolved against the folder of the settings file.
    pub(super) fn path(&mut self, key: &'static str) -> Result<PathBuf, SettingsError> {
        let setting = self.ask(key);
        let (_, value) = self.text(setting)?.ok_or_else(|| self.missing(setting))?;
        Ok(self.path.parent().unwrap_or(Path::new("")).join(value))
    }

    pub(super) fn address(&mut self, key: &'static str) -> Result<SocketAddr, SettingsError> {
        let setting = self.ask(key);
        let (line, value) = self.text(setting)?.ok_or_else(|| self.missing(setting))?;
        value.parse().map_err(|_| self.at(line, Fault::NotAnAddress { key, value }))
    }

    /// Where everything stood, unless something is left that nobody asked for.
    pub(super) fn finish(mut self) -> Result<Origin, SettingsError> {
        debug_assert_eq!(self.asked.len(), SETTINGS.len(), "every listed setting is read, and only those");
        let mut left: Vec<(String, usize)> =
            std::mem::take(&mut self.found).into_iter().map(|(key, (line, _))| (key, line)).collect();
        left.sort_by_key(|(_, line)| *line);
        match left.into_iter().next() {
            None => Ok(Origin { path: self.path, lines: self.lines }),
            Some((key, line)) => {
                let remedy = remedy(&key);
                Err(self.at(line, Fault::Unknown { key, remedy }))
            }
        }
    }

    fn ask(&mut self, key: &'static str) -> &'static Setting {
        let setting = SETTINGS.iter().find(|setting| setting.key == key).expect("settings are in the table");
        self.asked.push(key);
        if let Some((line, _)) = self.found.get(key) {
            self.lines.insert(key, *line);
        }
        setting
    }

    fn text(&mut self, setting: &'static Setting) -> Result<Option<(usize, String)>, SettingsError> {
        match self.found.remove(setting.key) {
            None => Ok(None),
            Some((line, Value::Text(text))) if !text.is_empty() => Ok(Some((line, text))),
            Some((line, other)) => {
                let expected = format!("{}, in quotes", setting.allowed_text());
                Err(self.wrong_type(setting.key, line, &other, expected))
            }
        }
    }

    fn missing(&self, setting: &Setting) -> SettingsError {
        let fault = Fault::Missing { key: setting.key, what: setting.what };
        SettingsError { path: self.path.clone(), line: None, fault }
    }

    fn wrong_type(&self, key: &'static str, line: usize, value: &Value, expected: String) -> SettingsError {
        let found = match value {
            Value::Text(text) if text.is_empty() => "empty",
            Value::Text(_) => "a text",
            Value::Number(_) | Value::Huge => "a number",
            Value::Other(kind) => kind,
        };
        self.at(line, Fault::WrongType { key, found, expected })
    }

    fn at(&self, line: usize, fault: Fault) -> SettingsError {
        SettingsError { path: self.path.clone(), line: Some(line), fault }
    }
}

/// One level of sections is all there is; what lies deeper is nobody's setting and stands under its own name.
fn collect(text: &str, prefix: &str, table: &DeTable<'_>, found: &mut BTreeMap<String, (usize, Value)>) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        if let (DeValue::Table(inner), true) = (value.get_ref(), prefix.is_empty()) {
            collect(text, &format!("{key}."), inner, found);
            continue;
        }
        let line = line_of(text, name.span().start);
        found.insert(key, (line, value_of(value)));
    }
}

fn value_of(value: &Spanned<DeValue<'_>>) -> Value {
    match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(integer) => {
            let digits = integer.as_str();
            i64::from_str_radix(digits, integer.radix()).map_or(Value::Huge, Value::Number)
        }
        DeValue::Float(_) => Value::Other("a fraction"),
        DeValue::Boolean(_) => Value::Other("true or false"),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(_) => Value::Other("a list"),
        DeValue::Table(_) => Value::Other("a section"),
    }
}

pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// The nearest setting by name, if one is near; else where the list is.
fn remedy(key: &str) -> String {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_string();
    let near = SETTINGS
        .iter()
        .map(|setting| {
            // The right name in the wrong section is the commonest slip.
            let by_name = distance(&last(setting.key), &last(key));
            (by_name.min(distance(setting.key, key)), setting.key)
        })
        .min()
        .filter(|(distance, _)| *distance <= 3.max(last(key).len() / 3));
    match near {
        Some((_, near)) => format!("did you mean `{near}`? `dwcp server --help-settings` lists all"),
        None => "remove it; `dwcp server --help-settings` lists all".into(),
    }
}

/// Edits between two short words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let cost = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

//! An option of qemu's command line, taken apart.

use serde_json::Value;

/// An option with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Argument {
    /// The option without its dashes; nothing for a word that follows none, which qemu takes for an image.
    pub(super) option: String,
    pub(super) value: String,
    /// The value's parts; a part without a key has an empty one.
    pub(super) parts: Vec<(String, String)>,
}

/// Parts that no message shows.
const SECRET: [&str; 3] = ["data", "password", "passwd"];

impl Argument {
    fn new(option: &str, value: &str) -> Self {
        Self { option: option.to_owned(), value: value.to_owned(), parts: parts(value) }
    }

    /// The value of a part.
    pub(super) fn part(&self, key: &str) -> Option<&str> {
        self.parts.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The driver, backend or type, which may be given without its key.
    pub(super) fn kind(&self, key: &str) -> &str {
        self.part(key)
            .or_else(|| self.parts.first().filter(|(key, _)| key.is_empty()).map(|(_, kind)| kind.as_str()))
            .unwrap_or_default()
    }

    /// The argument as a message may show it.
    pub(super) fn shown(&self) -> String {
        let option = if self.option.is_empty() { String::new() } else { format!("-{} ", self.option) };
        if !self.parts.iter().any(|(key, _)| SECRET.contains(&key.as_str())) {
            return format!("{option}{}", self.value).trim_end().to_owned();
        }
        let part = |(key, value): &(String, String)| match key.as_str() {
            "" => value.clone(),
            key if SECRET.contains(&key) => format!("{key}=***"),
            key => format!("{key}={value}"),
        };
        option + &self.parts.iter().map(part).collect::<Vec<_>>().join(",")
    }
}

/// Pairs each option with the word behind it. Those that take no value leave the next option alone, as it begins with a dash.
pub(super) fn read(words: &[&str]) -> Vec<Argument> {
    let mut found = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix('-') else {
            found.push(Argument::new("", word));
            continue;
        };
        let option = option.trim_start_matches('-');
        // One word for both is none that qemu understands, but may be meant.
        if let Some((option, value)) = option.split_once(char::is_whitespace) {
            found.push(Argument::new(option, value.trim()));
            continue;
        }
        let value = words.next_if(|next| !next.starts_with('-')).copied().unwrap_or_default();
        found.push(Argument::new(option, value));
    }
    found
}

/// Parts between commas, where two stand for one that is meant; or those of an object in JSON, which newer options take.
fn parts(value: &str) -> Vec<(String, String)> {
    if value.starts_with('{')
        && let Ok(json) = serde_json::from_str::<Value>(value)
    {
        let mut found = Vec::new();
        flatten("", &json, &mut found);
        return found;
    }
    let escaped = value.replace(",,", "\0");
    let part = |part: &str| {
        let (key, value) = part.split_once('=').unwrap_or(("", part));
        (key.to_owned(), value.replace('\0', ","))
    };
    escaped.split(',').map(part).collect()
}

fn flatten(key: &str, json: &Value, found: &mut Vec<(String, String)>) {
    match json {
        Value::Object(members) => members.iter().for_each(|(key, value)| flatten(key, value, found)),
        Value::Array(items) => items.iter().for_each(|item| flatten(key, item, found)),
        Value::String(text) => found.push((key.to_owned(), text.clone())),
        other => found.push((key.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_get_their_values() {
        let words = ["-s", "-device", "vfio-pci,host=01:00.0", "--qmp", "unix:/a", "/img", "-object a,b=c,,d", "-S"];
        let found = read(&words);
        let shown: Vec<String> = found.iter().map(Argument::shown).collect();
        assert_eq!(shown, ["-s", "-device vfio-pci,host=01:00.0", "-qmp unix:/a", "/img", "-object a,b=c,,d", "-S"]);
        assert_eq!((found[1].kind("driver"), found[1].part("host")), ("vfio-pci", Some("01:00.0")));
        assert_eq!(found[4].part("b"), Some("c,d"));
    }

    #[test]
    fn objects_in_json_have_parts_as_well() {
        let found = read(&["-object", r#"{"qom-type":"x","a":{"path":"/p"},"n":[1]}"#]);
        assert_eq!(
            (found[0].kind("qom-type"), found[0].part("path"), found[0].part("n")),
            ("x", Some("/p"), Some("1"))
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let found = read(&["-object", "secret,id=s,data=hunter2,file=/x"]);
        assert_eq!(found[0].shown(), "-object secret,id=s,data=***,file=/x");
    }
}

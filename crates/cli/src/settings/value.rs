//! What the values of settings and options can be.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use kvm_clone_core::{Error, Result};

/// A whole number within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounded<const MIN: u64, const MAX: u64>(u64);

/// A span of time, up to a day.
pub(crate) type Seconds = Bounded<1, 86_400>;
/// A TCP port.
pub(crate) type Port = Bounded<1, 65_535>;
/// How many lanes copy at once.
pub(crate) type Lanes = Bounded<1, 16>;
/// How often something is tried.
pub(crate) type Attempts = Bounded<1, 20>;
/// A share.
pub(crate) type Percent = Bounded<0, 100>;

impl<const MIN: u64, const MAX: u64> Bounded<MIN, MAX> {
    /// The number.
    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    /// The number in a smaller type, which the bounds fit.
    pub(crate) fn narrow<T: TryFrom<u64>>(self) -> Result<T> {
        T::try_from(self.0).map_err(|_| Error::internal(format!("{} does not fit", self.0)))
    }
}

impl<const MIN: u64, const MAX: u64> FromStr for Bounded<MIN, MAX> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = plain.then(|| text.parse().ok()).flatten();
        number
            .filter(|number| (MIN..=MAX).contains(number))
            .map(Self)
            .ok_or_else(|| Error::validation(format!("{text:?} is not a whole number from {MIN} to {MAX}")))
    }
}

impl<const MIN: u64, const MAX: u64> fmt::Display for Bounded<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value that may be unset; as text, the empty word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Optional<T>(pub(crate) Option<T>);

impl<T> Optional<T> {
    /// A value that is set.
    pub(crate) const fn some(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T: FromStr<Err = Error>> FromStr for Optional<T> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() { Ok(Self(None)) } else { Ok(Self(Some(text.parse()?))) }
    }
}

impl<T: fmt::Display> fmt::Display for Optional<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |value| value.fmt(f))
    }
}

macro_rules! words {
    ($($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $name:ident = $word:literal $(| $alias:literal)*,)* })*) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $type { $($(#[$variant_doc])* $name,)* }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($word $(| $alias)* => Ok(Self::$name),)*
                    _ => Err(Error::validation(format!("{text:?} is not one of {}", [$($word),*].join(", ")))),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $word,)* })
            }
        }
    )* };
}

words! {
    /// What happens with host keys.
    HostKeyPolicy {
        /// Unknown ones are refused.
        Strict = "strict",
        /// Unknown ones are accepted the first time; changed ones never.
        AcceptNew = "accept-new",
    }
    /// Whether something is done.
    Switch {
        /// It is.
        On = "true" | "on",
        /// It is not.
        Off = "false" | "off",
    }
    /// The way between the hosts.
    Route {
        /// Direct where that is possible.
        Auto = "auto",
        /// Over SSH.
        Relay = "relay",
        /// From host to host.
        Direct = "direct",
    }
    /// How what was written is checked.
    VerifyMode {
        /// Read back from the page cache.
        On = "on" | "true",
        /// Not read back.
        Off = "off" | "false",
        /// Read back from the medium.
        Media = "media",
    }
    /// How much is logged.
    LogLevel {
        /// Everything.
        Debug = "debug",
        /// What was done.
        Info = "info",
        /// What should be looked at.
        Warn = "warn",
        /// What failed.
        Error = "error",
    }
    /// How the log is written.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

/// A file that holds a private key; may begin with `~/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyPath(pub(crate) String);

impl FromStr for KeyPath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(Error::validation(format!("{text:?} is not a path")));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user to log in as; what a host may be written with holds here too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User(pub(crate) String);

impl FromStr for User {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let host = format!("{text}@host").parse::<kvm_clone_core::host::HostAddr>();
        host.map(|_| Self(text.to_owned())).map_err(|_| Error::validation(format!("{text:?} is not a user name")))
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the journal is: `sqlite:/PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JournalUrl(pub(crate) PathBuf);

impl FromStr for JournalUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let path = text.strip_prefix("sqlite:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
        path.map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .map(Self)
            .ok_or_else(|| Error::validation(format!("{text:?} is not a journal")).help("Write sqlite:/ABSOLUTE/PATH"))
    }
}

impl fmt::Display for JournalUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlite:{}", self.0.display())
    }
}

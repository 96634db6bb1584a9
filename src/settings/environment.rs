//! Settings from environment variables.

use std::{borrow::Cow, env, ffi::OsString, fmt};

use zeroize::{Zeroize, Zeroizing};

use super::{Dsn, DsnError};
use crate::{
    secret::Credential,
    tenant::{DataSource, DataSourceId, Pooler},
};

/// The schema of the control plane's own tables, and the search path of its connections.
pub const CONTROL_SCHEMA: &str = "biplane_control";

/// The schema that every data-plane database has for the fence.
const FENCE_SCHEMA: &str = "biplane";

/// Postgres' own default schema.
const PUBLIC_SCHEMA: &str = "public";

/// Where the planes are, in relation to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// Both planes in one database, each with a role and a search path of its own.
    Single,
    /// Planes on databases of their own. The default, because a wrong plane is then out of reach altogether.
    #[default]
    Split,
}

impl Mode {
    /// The name used in the environment.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Split => "split",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where both planes are, as the environment says.
///
/// The same program runs on one database or on many servers; only these settings tell which.
///
/// | variable | meaning | also read |
/// |---|---|---|
/// | `BIPLANE_CONTROL_URL` | the control plane; required | `CONTROL_DB_URL`, `PRIMARY_DATABASE_URL` |
/// | `BIPLANE_DATA_URL` | the data source named `default`; required in single mode | `DATA_DATABASE_URL` |
/// | `BIPLANE_MODE` | `single` or `split`; without it `split` | `SPLIT_DB_MODE`, `false` or `true` |
///
/// # Contract
/// - Two variables for one setting must agree; a variable that is set must not be empty.
/// - In single mode both URLs name one server and one database, and two users: each plane has a role of its own, so
///   that a query on the wrong plane fails there too. In split mode they do not name one database of one server. This
///   compares addresses as they are written; behind a declared pooler on one side only, single mode compares the
///   databases alone.
/// - The control plane's search path is [`CONTROL_SCHEMA`], the data plane's the parameter `schema` of its URL or
///   `public`.
///
/// `Debug` shows addresses, never a user or a password.
#[derive(Clone, Debug)]
pub struct Settings {
    mode: Mode,
    control: Dsn,
    data: Option<Dsn>,
}

impl Settings {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// A variable that is missing, empty or wrong, or two that contradict each other; always with their names.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::from_env_with(&VariableNames::default())
    }

    /// Reads the environment of this process, from variables with other names.
    ///
    /// # Errors
    /// As for [`Settings::from_env`].
    pub fn from_env_with(names: &VariableNames) -> Result<Self, SettingsError> {
        Self::read(
            names,
            &|name| match env::var_os(name).map(OsString::into_string) {
                None => Found::Nothing,
                Some(Ok(text)) => Found::Text(Zeroizing::new(text)),
                Some(Err(value)) => {
                    value.into_encoded_bytes().zeroize();
                    Found::NotUnicode
                }
            },
        )
    }

    /// Reads variables from wherever the caller keeps them: a test's table, a file, a secret store.
    ///
    /// # Errors
    /// As for [`Settings::from_env`].
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        Self::from_lookup_with(&VariableNames::default(), lookup)
    }

    /// Reads variables with other names from wherever the caller keeps them.
    ///
    /// # Errors
    /// As for [`Settings::from_env`].
    pub fn from_lookup_with(
        names: &VariableNames,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        Self::read(names, &|name| match lookup(name) {
            Some(text) => Found::Text(Zeroizing::new(text)),
            None => Found::Nothing,
        })
    }

    /// Whether the planes share a database.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The control plane.
    #[must_use]
    pub fn control(&self) -> &Dsn {
        &self.control
    }

    /// The data source named `default`, if the environment has one.
    #[must_use]
    pub fn data(&self) -> Option<&Dsn> {
        self.data.as_ref()
    }

    /// The schema in which the control plane's connections look.
    #[must_use]
    pub fn control_search_path(&self) -> &str {
        CONTROL_SCHEMA
    }

    /// The schema in which connections to the data source named `default` look.
    #[must_use]
    pub fn data_search_path(&self) -> &str {
        self.data.as_ref().and_then(Dsn::schema).unwrap_or(PUBLIC_SCHEMA)
    }

    /// The data source named `default` ([`DataSourceId::DEFAULT`]) and its credential, so that one data server needs
    /// no entry in the control plane.
    #[must_use]
    pub fn default_source(&self) -> Option<(DataSource, Credential)> {
        let data = self.data.clone()?;
        Some(data.into_source(DataSourceId::DEFAULT, "default"))
    }

    fn read(names: &VariableNames, lookup: &dyn Fn(&str) -> Found) -> Result<Self, SettingsError> {
        let (mode, switch) = names.find_mode(lookup)?;
        let control = find_url(&names.control, lookup)?;
        let data = find_url(&names.data, lookup)?;
        let Some((control_name, control)) = control else {
            return Err(SettingsError::Missing {
                variable: names.control[0].as_ref().into(),
            });
        };
        if control.schema().is_some_and(|schema| schema != CONTROL_SCHEMA) {
            return Err(SettingsError::ControlSchema {
                variable: control_name.into(),
            });
        }
        let Some((data_name, data)) = data else {
            return match mode {
                Mode::Split => Ok(Self {
                    mode,
                    control,
                    data: None,
                }),
                Mode::Single => Err(SettingsError::SingleWithoutData {
                    variable: names.data[0].as_ref().into(),
                }),
            };
        };
        if data
            .schema()
            .is_some_and(|schema| [CONTROL_SCHEMA, FENCE_SCHEMA].contains(&schema))
        {
            return Err(SettingsError::ReservedSchema {
                variable: data_name.into(),
            });
        }
        let (control_variable, data_variable) = (control_name.into(), data_name.into());
        match mode {
            Mode::Single if !may_be_one_database(&control, &data) => {
                Err(SettingsError::SingleOnTwoDatabases {
                    control: control_variable,
                    data: data_variable,
                })
            }
            Mode::Single if control.credential().username() == data.credential().username() => {
                Err(SettingsError::SingleWithOneUser {
                    control: control_variable,
                    data: data_variable,
                })
            }
            Mode::Split if is_one_database(&control, &data) => Err(SettingsError::SplitOnOneDatabase {
                control: control_variable,
                data: data_variable,
                switch,
            }),
            Mode::Single | Mode::Split => Ok(Self {
                mode,
                control,
                data: Some(data),
            }),
        }
    }
}

/// The variables that hold the settings, for a process whose environment has other names for them.
///
/// A name given here replaces the usual one together with its alternatives, which then may mean something else.
#[derive(Clone, Debug)]
pub struct VariableNames {
    control: Vec<Cow<'static, str>>,
    data: Vec<Cow<'static, str>>,
    mode: Vec<(Cow<'static, str>, ModeSpelling)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModeSpelling {
    /// `single` or `split`.
    Name,
    /// Split: `true` or `false`.
    Split,
}

impl VariableNames {
    /// The variable with the URL of the control plane.
    #[must_use]
    pub fn control(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.control = vec![name.into()];
        self
    }

    /// The variable with the URL of the data source named `default`.
    #[must_use]
    pub fn data(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.data = vec![name.into()];
        self
    }

    /// The variable that says `single` or `split`.
    #[must_use]
    pub fn mode(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.mode = vec![(name.into(), ModeSpelling::Name)];
        self
    }

    /// The mode, and the setting that would make it single, for the one error that advises it.
    fn find_mode(&self, lookup: &dyn Fn(&str) -> Found) -> Result<(Mode, Box<str>), SettingsError> {
        let mut found: Option<(&str, ModeSpelling, Mode)> = None;
        for (name, spelling) in &self.mode {
            let Some(text) = find(name, lookup)? else {
                continue;
            };
            let mode = spelling.parse(&text).ok_or_else(|| SettingsError::Mode {
                variable: name.as_ref().into(),
                expected: spelling.expected(),
            })?;
            match found {
                Some((first, _, other)) if other != mode => return Err(contradiction(first, name)),
                Some(_) => {}
                None => found = Some((name, *spelling, mode)),
            }
        }
        let mode = found.map(|(_, _, mode)| mode).unwrap_or_default();
        let (name, spelling) = found.map_or((&*self.mode[0].0, self.mode[0].1), |(name, spelling, _)| {
            (name, spelling)
        });
        Ok((mode, format!("{name}={}", spelling.single()).into()))
    }
}

impl Default for VariableNames {
    /// The names that [`Settings`] lists: ours, and those that the systems we come from already have.
    fn default() -> Self {
        Self {
            control: ["BIPLANE_CONTROL_URL", "CONTROL_DB_URL", "PRIMARY_DATABASE_URL"]
                .map(Cow::Borrowed)
                .into(),
            data: ["BIPLANE_DATA_URL", "DATA_DATABASE_URL"]
                .map(Cow::Borrowed)
                .into(),
            mode: vec![
                ("BIPLANE_MODE".into(), ModeSpelling::Name),
                ("SPLIT_DB_MODE".into(), ModeSpelling::Split),
            ],
        }
    }
}

impl ModeSpelling {
    fn parse(self, text: &str) -> Option<Mode> {
        match (self, text) {
            (Self::Name, "single") | (Self::Split, "false") => Some(Mode::Single),
            (Self::Name, "split") | (Self::Split, "true") => Some(Mode::Split),
            _ => None,
        }
    }

    const fn expected(self) -> &'static str {
        match self {
            Self::Name => "single or split",
            Self::Split => "false or true",
        }
    }

    const fn single(self) -> &'static str {
        match self {
            Self::Name => "single",
            Self::Split => "false",
        }
    }
}

/// Refuses variables that sqlx reads when it makes connection options and that no option of ours can take back.
///
/// `PGOPTIONS` changes session settings on every connection, `PGSSLCERT` and `PGSSLKEY` present a client certificate
/// to every server, `PGSSLROOTCERT` adds an authority to those that every server is checked against. Set for `psql` in
/// the same container, they would silently apply to every tenant. The variables with which sqlx fills in host, user,
/// password and the like are harmless, because each is overridden.
///
/// ```
/// biplane::settings::forbidden_environment(|name| std::env::var(name).ok())?;
/// # Ok::<(), biplane::settings::SettingsError>(())
/// ```
///
/// # Errors
/// [`SettingsError::Forbidden`] with the names of those that are set, be it to nothing.
pub fn forbidden_environment(lookup: impl Fn(&str) -> Option<String>) -> Result<(), SettingsError> {
    let variables: Vec<&'static str> = ["PGOPTIONS", "PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT"]
        .into_iter()
        .filter(|name| lookup(name).map(Zeroizing::new).is_some())
        .collect();
    if variables.is_empty() {
        Ok(())
    } else {
        Err(SettingsError::Forbidden { variables })
    }
}

/// Why the environment does not make settings. Names of variables, never their values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The control plane's URL is missing.
    #[error("{variable} is not set; set it to postgres://user:password@host:5432/database")]
    Missing {
        /// Its name.
        variable: Box<str>,
    },
    /// A variable is set to nothing.
    #[error("{variable} is empty; set it to a value or unset it")]
    Empty {
        /// Its name.
        variable: Box<str>,
    },
    /// A variable is not UTF-8.
    #[error("{variable} does not hold UTF-8 text")]
    NotUnicode {
        /// Its name.
        variable: Box<str>,
    },
    /// A variable holds no URL that we can follow; the source says why.
    #[error("{variable} holds no usable database URL")]
    Url {
        /// Its name.
        variable: Box<str>,
        /// The rule that was broken.
        source: DsnError,
    },
    /// The mode is none.
    #[error("{variable} has to be {expected}")]
    Mode {
        /// Its name.
        variable: Box<str>,
        /// What it takes.
        expected: &'static str,
    },
    /// Two variables for one setting disagree.
    #[error("{first} and {second} mean the same and have different values; unset one of them")]
    Contradiction {
        /// The name of one.
        first: Box<str>,
        /// The name of the other.
        second: Box<str>,
    },
    /// Single mode with one URL.
    #[error("single mode needs {variable} too, with the same server and database and a user of its own")]
    SingleWithoutData {
        /// The missing variable.
        variable: Box<str>,
    },
    /// Single mode with two databases.
    #[error("{control} and {data} have to name the same server and database in single mode")]
    SingleOnTwoDatabases {
        /// The control plane's variable.
        control: Box<str>,
        /// The data plane's variable.
        data: Box<str>,
    },
    /// Single mode with one user.
    #[error(
        "{control} and {data} have to name different users in single mode; give each plane a role of its own"
    )]
    SingleWithOneUser {
        /// The control plane's variable.
        control: Box<str>,
        /// The data plane's variable.
        data: Box<str>,
    },
    /// Split mode with one database.
    #[error("{control} and {data} name the same database in split mode; set {switch}, or name two databases")]
    SplitOnOneDatabase {
        /// The control plane's variable.
        control: Box<str>,
        /// The data plane's variable.
        data: Box<str>,
        /// The assignment that turns single mode on.
        switch: Box<str>,
    },
    /// A schema in the control plane's URL.
    #[error("{variable} must not choose a schema; the control plane uses biplane_control")]
    ControlSchema {
        /// Its name.
        variable: Box<str>,
    },
    /// A schema of ours in the data plane's URL.
    #[error("{variable} must not choose the schema biplane_control or biplane; those hold no business data")]
    ReservedSchema {
        /// Its name.
        variable: Box<str>,
    },
    /// Variables that would change every connection.
    #[error("{} would change every connection; unset them and use the settings of each data source", .variables.join(", "))]
    Forbidden {
        /// Their names.
        variables: Vec<&'static str>,
    },
}

enum Found {
    Nothing,
    NotUnicode,
    Text(Zeroizing<String>),
}

fn find(name: &str, lookup: &dyn Fn(&str) -> Found) -> Result<Option<Zeroizing<String>>, SettingsError> {
    let variable = || Box::<str>::from(name);
    match lookup(name) {
        Found::Nothing => Ok(None),
        Found::NotUnicode => Err(SettingsError::NotUnicode { variable: variable() }),
        Found::Text(text) if text.trim().is_empty() => Err(SettingsError::Empty { variable: variable() }),
        Found::Text(text) => Ok(Some(text)),
    }
}

fn find_url<'a>(
    names: &'a [Cow<'static, str>],
    lookup: &dyn Fn(&str) -> Found,
) -> Result<Option<(&'a str, Dsn)>, SettingsError> {
    let mut found: Option<(&str, Zeroizing<String>)> = None;
    for name in names {
        let Some(text) = find(name, lookup)? else {
            continue;
        };
        match &found {
            Some((first, other)) if *other != text => return Err(contradiction(first, name)),
            Some(_) => {}
            None => found = Some((name, text)),
        }
    }
    let Some((name, text)) = found else {
        return Ok(None);
    };
    let dsn = Dsn::parse(&text).map_err(|source| SettingsError::Url {
        variable: name.into(),
        source,
    })?;
    Ok(Some((name, dsn)))
}

fn contradiction(first: &str, second: &str) -> SettingsError {
    SettingsError::Contradiction {
        first: first.into(),
        second: second.into(),
    }
}

fn is_one_database(one: &Dsn, other: &Dsn) -> bool {
    one.server().database == other.server().database && one.shares_endpoint(other)
}

fn may_be_one_database(one: &Dsn, other: &Dsn) -> bool {
    let is_direct = |dsn: &Dsn| dsn.server().pooler == Pooler::Direct;
    // The address of a pooler says nothing about the server behind it.
    let comparable = is_direct(one) == is_direct(other);
    one.server().database == other.server().database && (!comparable || one.shares_endpoint(other))
}

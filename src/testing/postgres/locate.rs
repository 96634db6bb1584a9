//! Finding the programs.

use std::{
    cmp::Reverse,
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{ClusterError, Missing};

const SERVER_PROGRAMS: &[&str] = &["postgres", "initdb"];
/// Comes with the server's packages, or with the client's on which those depend.
const BASE_BACKUP: &[&str] = &["pg_basebackup"];

/// A directory with `postgres` and `initdb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    bin: PathBuf,
}

/// The `pgbouncer` program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bouncer {
    file: PathBuf,
}

/// Where PgBouncers may be, and what to say when none of them will do.
#[derive(Clone, Debug)]
pub(super) struct Bouncers {
    pub(super) found: Vec<Bouncer>,
    pub(super) missing: Missing,
}

/// Where to look. The root is `/` except in tests.
#[derive(Debug)]
pub(super) struct Search {
    root: PathBuf,
    server_variable: Option<OsString>,
    bouncer_variable: Option<OsString>,
    newer_bouncer_variable: Option<OsString>,
    path: Option<OsString>,
    cache: Option<PathBuf>,
}

impl Server {
    /// The server of a directory that the caller names.
    ///
    /// # Errors
    /// When the programs are not in it.
    pub(super) fn at(bin: &Path) -> Result<Self, ClusterError> {
        holds_server(bin)
            .then(|| Self { bin: bin.into() })
            .ok_or_else(|| missing(SERVER_PROGRAMS, vec![bin.into()]))
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// The program that copies a running server: beside `postgres`, or beside what that is a link to.
    ///
    /// # Errors
    /// When it is there in neither place.
    pub(super) fn base_backup(&self) -> Result<PathBuf, ClusterError> {
        let linked = fs::canonicalize(self.program("postgres")).ok();
        let behind = linked.as_deref().and_then(Path::parent);
        let places: Vec<&Path> = [Some(&*self.bin), behind].into_iter().flatten().collect();
        let found = places.iter().map(|bin| bin.join(BASE_BACKUP[0]));
        found.into_iter().find(|file| file.exists()).ok_or_else(|| {
            let looked_in = places.iter().map(|bin| bin.to_path_buf()).collect();
            missing(BASE_BACKUP, looked_in)
        })
    }

    /// Where the programs find their libraries, if they lie in an unpacked package rather than in the system.
    pub(super) fn libraries(&self) -> Option<OsString> {
        libraries_beside(&self.program("postgres"))
    }
}

impl Bouncer {
    pub(super) fn program(&self) -> &Path {
        &self.file
    }

    /// As [`Server::libraries`].
    pub(super) fn libraries(&self) -> Option<OsString> {
        libraries_beside(&self.file)
    }
}

impl Search {
    /// Looks where the environment says.
    pub(super) fn from_environment() -> Self {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let cache = set("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(Path::new(&set("HOME")?).join(".cache")));
        Self {
            root: "/".into(),
            server_variable: set("BIPLANE_PG_BIN"),
            bouncer_variable: set("BIPLANE_PGBOUNCER"),
            newer_bouncer_variable: set("BIPLANE_PGBOUNCER_NEW"),
            path: set("PATH"),
            cache: cache.map(|cache| cache.join("biplane")),
        }
    }

    /// Finds a server.
    ///
    /// # Errors
    /// When there is none. A directory that the variable names is the only one asked, because whoever sets it wants
    /// that version and no other.
    pub(super) fn server(&self) -> Result<Server, ClusterError> {
        if let Some(named) = &self.server_variable {
            return Server::at(Path::new(named));
        }
        let mut looked_in = self.on_path();
        looked_in.extend(self.versions("usr/lib/postgresql", "", "bin"));
        looked_in.extend(self.versions("opt/homebrew/opt", "postgresql", "bin"));
        looked_in.extend(self.versions("usr/local/opt", "postgresql", "bin"));
        looked_in.extend(self.versions("usr", "pgsql-", "bin"));
        looked_in.push(self.root.join("usr/bin"));
        for unpacked in self.unpacked() {
            looked_in.extend(newest_first(&unpacked.join("usr/lib/postgresql"), "", "bin"));
        }
        match looked_in.iter().find(|bin| holds_server(bin)) {
            Some(bin) => Ok(Server { bin: bin.clone() }),
            None => {
                // Patterns, where the loop above had nothing to list, so that the message names every place.
                for pattern in [
                    "usr/lib/postgresql/*/bin",
                    "opt/homebrew/opt/postgresql*/bin",
                    "usr/local/opt/postgresql*/bin",
                    "usr/pgsql-*/bin",
                ] {
                    looked_in.push(self.root.join(pattern));
                }
                looked_in.extend(
                    self.cache
                        .iter()
                        .map(|cache| cache.join("packages/*/usr/lib/postgresql/*/bin")),
                );
                Err(missing(SERVER_PROGRAMS, looked_in))
            }
        }
    }

    /// The PgBouncers there are: the machine's own, or the one that the variable names.
    pub(super) fn bouncers(&self) -> Bouncers {
        Bouncers::among(
            self.bouncer_places(),
            Missing {
                programs: &["pgbouncer"],
                variable: "BIPLANE_PGBOUNCER to the program",
                looked_in: Vec::new(),
                install: "the package `pgbouncer` (apt-get, dnf or brew)",
            },
        )
    }

    /// Those that may know prepared statements: the one that a variable of its own names, or the machine's own, and those
    /// that were built beside it.
    pub(super) fn newer_bouncers(&self) -> Bouncers {
        let places = match &self.newer_bouncer_variable {
            Some(named) => vec![named.into()],
            None => {
                let mut places = self.bouncer_places();
                places.extend(
                    self.cache
                        .iter()
                        .flat_map(|cache| newest_first(cache, "pgbouncer-", "pgbouncer")),
                );
                places
            }
        };
        Bouncers::among(
            places,
            Missing {
                programs: &["pgbouncer 1.21 or later"],
                variable: "BIPLANE_PGBOUNCER_NEW to the program",
                looked_in: Vec::new(),
                install: "one (in biplane's repository, `tests/run --install-only` builds it)",
            },
        )
    }

    fn bouncer_places(&self) -> Vec<PathBuf> {
        if let Some(named) = &self.bouncer_variable {
            return vec![named.into()];
        }
        let mut directories = self.on_path();
        directories.extend(
            [
                "usr/sbin",
                "usr/local/sbin",
                "usr/bin",
                "usr/local/bin",
                "opt/homebrew/bin",
            ]
            .map(|place| self.root.join(place)),
        );
        directories.extend(self.unpacked().iter().map(|unpacked| unpacked.join("usr/sbin")));
        directories
            .iter()
            .map(|directory| directory.join("pgbouncer"))
            .collect()
    }

    fn on_path(&self) -> Vec<PathBuf> {
        self.path.iter().flat_map(env::split_paths).collect()
    }

    fn versions(&self, parent: &str, prefix: &str, below: &str) -> Vec<PathBuf> {
        newest_first(&self.root.join(parent), prefix, below)
    }

    /// The roots of unpacked packages.
    fn unpacked(&self) -> Vec<PathBuf> {
        self.cache
            .iter()
            .flat_map(|cache| newest_first(&cache.join("packages"), "", ""))
            .collect()
    }
}

impl Bouncers {
    fn among(places: Vec<PathBuf>, missing: Missing) -> Self {
        let found = places
            .iter()
            .filter(|file| file.is_file())
            .map(|file| Bouncer { file: file.clone() })
            .collect();
        Self {
            found,
            missing: Missing {
                looked_in: places,
                ..missing
            },
        }
    }
}

/// A command for one of the programs, cleared of the variables that libpq's programs would read.
pub(super) fn command(program: &Path, libraries: Option<OsString>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C");
    if let Some(libraries) = libraries {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}

fn holds_server(bin: &Path) -> bool {
    SERVER_PROGRAMS.iter().all(|program| bin.join(program).is_file())
}

fn missing(programs: &'static [&'static str], looked_in: Vec<PathBuf>) -> ClusterError {
    ClusterError::NotInstalled(Box::new(Missing {
        programs,
        variable: "BIPLANE_PG_BIN to their directory",
        looked_in,
        install: "a Postgres server (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install \
                  postgresql-server; macOS: brew install postgresql)",
    }))
}

/// The `below` of each entry of a directory that begins with the prefix, highest version number first.
fn newest_first(parent: &Path, prefix: &str, below: &str) -> Vec<PathBuf> {
    let mut found: Vec<(Vec<u32>, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            name.starts_with(prefix)
                .then(|| (version_in(name), entry.path().join(below)))
        })
        .collect();
    found.sort_by_key(|(version, path)| (Reverse(version.clone()), path.clone()));
    found.into_iter().map(|(_, path)| path).collect()
}

/// The numbers in a name such as `postgresql@16` or `9.6`. A name without any sorts last.
fn version_in(name: &str) -> Vec<u32> {
    name.split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// For a program in `<root>/usr/…` other than the system's own: the library directories of that root, before those
/// that the environment names.
fn libraries_beside(program: &Path) -> Option<OsString> {
    // A link on `PATH` may lead to an unpacked package.
    let program = fs::canonicalize(program).unwrap_or_else(|_| program.into());
    let usr = program
        .ancestors()
        .find(|ancestor| ancestor.file_name() == Some(OsStr::new("usr")))?;
    let root = usr.parent().filter(|root| *root != Path::new("/"))?;
    let mut directories = Vec::new();
    for library in ["usr/lib", "lib"] {
        let library = root.join(library);
        directories.extend(
            newest_first(&library, "", "")
                .into_iter()
                .filter(|path| path.to_string_lossy().contains("-linux-")),
        );
        directories.push(library);
    }
    directories.extend(env::var_os("LD_LIBRARY_PATH").iter().flat_map(env::split_paths));
    env::join_paths(directories).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nowhere(root: &Path) -> Search {
        Search {
            root: root.into(),
            server_variable: None,
            bouncer_variable: None,
            newer_bouncer_variable: None,
            path: Some(root.join("on-path").into()),
            cache: Some(root.join("cache")),
        }
    }

    fn install(bin: &Path, programs: &[&str]) {
        fs::create_dir_all(bin).unwrap();
        for program in programs {
            fs::write(bin.join(program), "").unwrap();
        }
    }

    #[test]
    fn the_program_that_copies_servers_is_found_beside_a_link_or_what_it_leads_to() {
        let root = tempfile::tempdir().unwrap();
        let (real, linked) = (root.path().join("15/bin"), root.path().join("bin"));
        install(&real, &["postgres", "initdb"]);
        fs::create_dir_all(&linked).unwrap();
        for program in SERVER_PROGRAMS {
            std::os::unix::fs::symlink(real.join(program), linked.join(program)).unwrap();
        }
        let server = Server::at(&linked).unwrap();
        let text = server.base_backup().unwrap_err().to_string();
        assert!(
            text.contains("pg_basebackup") && text.contains("15/bin"),
            "{text}"
        );
        install(&real, &["pg_basebackup"]);
        let found = server.base_backup().unwrap();
        assert_eq!(
            fs::canonicalize(found).unwrap(),
            fs::canonicalize(real.join("pg_basebackup")).unwrap()
        );
        install(&linked, &["pg_basebackup"]);
        assert_eq!(server.base_backup().unwrap(), linked.join("pg_basebackup"));
    }

    #[test]
    fn a_machine_without_postgres_is_told_what_to_install() {
        let root = tempfile::tempdir().unwrap();
        let text = nowhere(root.path()).server().unwrap_err().to_string();
        for expected in [
            "postgres and initdb",
            "on-path",
            "usr/lib/postgresql/*/bin",
            "opt/homebrew/opt/postgresql*/bin",
            "usr/pgsql-*/bin",
            "apt-get install postgresql",
            "dnf install",
            "brew install",
            "BIPLANE_PG_BIN",
        ] {
            assert!(text.contains(expected), "{expected} is missing in: {text}");
        }
    }

    #[test]
    fn a_machine_without_pgbouncer_is_told_what_to_install() {
        let root = tempfile::tempdir().unwrap();
        let text = nowhere(root.path()).bouncers().missing.to_string();
        for expected in ["usr/sbin/pgbouncer", "package `pgbouncer`", "BIPLANE_PGBOUNCER"] {
            assert!(text.contains(expected), "{expected} is missing in: {text}");
        }
        let text = nowhere(root.path()).newer_bouncers().missing.to_string();
        for expected in ["1.21", "usr/sbin/pgbouncer", "tests/run", "BIPLANE_PGBOUNCER_NEW"] {
            assert!(text.contains(expected), "{expected} is missing in: {text}");
        }
    }

    #[test]
    fn a_pgbouncer_that_was_built_comes_after_the_machines_own_and_before_older_ones() {
        let root = tempfile::tempdir().unwrap();
        let places = ["usr/sbin", "cache/pgbouncer-1.24.1", "cache/pgbouncer-1.9.0"];
        for place in places {
            install(&root.path().join(place), &["pgbouncer"]);
        }
        let files = |bouncers: Bouncers| -> Vec<PathBuf> {
            let files = bouncers.found.into_iter();
            files.map(|bouncer| bouncer.file).collect()
        };
        let expected = places.map(|place| root.path().join(place).join("pgbouncer"));
        let mut search = nowhere(root.path());
        assert_eq!(files(search.newer_bouncers()), expected);
        assert_eq!(files(search.bouncers()), expected[..1]);
        search.newer_bouncer_variable = Some(root.path().join("typo").into());
        assert!(files(search.newer_bouncers()).is_empty());
    }

    #[test]
    fn the_newest_version_wins_by_number_rather_than_by_text() {
        let root = tempfile::tempdir().unwrap();
        for version in ["9.6", "16", "15"] {
            let bin = root.path().join("usr/lib/postgresql").join(version).join("bin");
            install(&bin, SERVER_PROGRAMS);
        }
        let server = nowhere(root.path()).server().unwrap();
        assert_eq!(server.bin, root.path().join("usr/lib/postgresql/16/bin"));
    }

    #[test]
    fn a_directory_with_clients_alone_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("on-path"), &["psql", "postgres"]);
        install(
            &root.path().join("opt/homebrew/opt/postgresql@17/bin"),
            SERVER_PROGRAMS,
        );
        let server = nowhere(root.path()).server().unwrap();
        assert_eq!(server.bin, root.path().join("opt/homebrew/opt/postgresql@17/bin"));
    }

    #[test]
    fn the_path_comes_before_the_usual_places() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("on-path"), SERVER_PROGRAMS);
        install(&root.path().join("usr/lib/postgresql/18/bin"), SERVER_PROGRAMS);
        let server = nowhere(root.path()).server().unwrap();
        assert_eq!(server.bin, root.path().join("on-path"));
    }

    #[test]
    fn a_named_directory_is_the_only_one() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("on-path"), SERVER_PROGRAMS);
        let search = Search {
            server_variable: Some(root.path().join("typo").into()),
            ..nowhere(root.path())
        };
        let text = search.server().unwrap_err().to_string();
        assert!(text.contains("typo") && !text.contains("on-path"), "{text}");
    }

    #[test]
    fn unpacked_packages_are_found_with_their_libraries() {
        let root = tempfile::tempdir().unwrap();
        // Where the directory for temporary files is a link, the libraries are named by its target.
        let root = fs::canonicalize(root.path()).unwrap();
        let unpacked = root.join("cache/packages/bookworm-amd64");
        install(&unpacked.join("usr/lib/postgresql/15/bin"), SERVER_PROGRAMS);
        install(&unpacked.join("usr/lib/x86_64-linux-gnu"), &["libpq.so.5"]);
        install(&unpacked.join("usr/sbin"), &["pgbouncer"]);
        let search = nowhere(&root);
        let expected = unpacked.join("usr/lib/x86_64-linux-gnu");
        for libraries in [
            search.server().unwrap().libraries().unwrap(),
            search.bouncers().found[0].libraries().unwrap(),
        ] {
            assert_eq!(env::split_paths(&libraries).next(), Some(expected.clone()));
        }
    }

    #[test]
    fn the_systems_own_programs_need_no_library_path() {
        assert_eq!(
            libraries_beside(Path::new("/usr/lib/postgresql/0/bin/postgres")),
            None
        );
        assert_eq!(
            libraries_beside(Path::new("/opt/homebrew/opt/postgresql@16/bin")),
            None
        );
    }
}

//! Routers over Postgres.

use std::sync::Arc;

use super::{Biplane, Builder, ConnectorSettings};
use crate::{
    connector::{
        Connector,
        postgres::{EnvironmentSource, PgConnector, PgConnectorOptions},
    },
    error::{Error, ErrorKind},
    plane::{ControlDb, ControlOptions, TenantDb},
    pool::{BreakerOptions, PoolOptions},
    repository::{CredentialSource, PgTenants, TenantRepository},
    settings::Settings,
};

impl ConnectorSettings for PgConnectorOptions {
    type Connector = PgConnector;

    fn connector(self) -> Result<PgConnector, Error> {
        PgConnector::new(self)
    }
}

impl Biplane<TenantDb> {
    /// A router whose tenants' data is on Postgres servers, with logins from a [`Keyring`](crate::keyring::Keyring) or
    /// any other source.
    pub fn postgres(
        repository: impl TenantRepository,
        credentials: impl CredentialSource,
    ) -> Builder<PgConnectorOptions> {
        Self::builder(repository, PgConnectorOptions::new(Arc::new(credentials)))
    }

    /// A router as the environment describes it: both planes on one database or on many servers, by the settings alone.
    ///
    /// # Errors
    /// [`InvalidConfiguration`](ErrorKind::InvalidConfiguration) for settings that cannot work.
    pub fn from_settings(
        settings: &Settings,
        credentials: impl CredentialSource,
    ) -> Result<Builder<PgConnectorOptions>, Error> {
        let control = ControlDb::connect(ControlOptions::from_settings(settings))?;
        let mut builder = Self::postgres(PgTenants::new(control), credentials);
        // The name of a schema, as it is stored, to be read by Postgres as a list of identifiers.
        builder.settings.search_path = format!("\"{}\"", settings.data_search_path()).into();
        builder.settings.environment = EnvironmentSource::from_settings(settings);
        if let Some(data) = settings.data() {
            let options = &mut builder.settings;
            options.service = data
                .application_name()
                .map_or_else(|| Arc::clone(&options.service), Arc::from);
            options.pool.connect_timeout = data.connect_timeout().unwrap_or(options.pool.connect_timeout);
            options.pool.wait_timeout = data.pool_timeout().unwrap_or(options.pool.wait_timeout);
        }
        Ok(builder)
    }
}

impl Builder<PgConnectorOptions> {
    /// How many connections this process holds, and for how long.
    pub fn pool(mut self, options: PoolOptions) -> Self {
        self.settings.pool = options;
        self
    }

    /// When a server or a login that fails is left alone, and how it is taken back.
    pub fn breakers(mut self, options: BreakerOptions) -> Self {
        self.settings.breakers = options;
        self
    }

    /// What servers show as the name of the application.
    pub fn service(mut self, name: impl Into<Arc<str>>) -> Self {
        self.settings.service = name.into();
        self
    }

    /// The schemas that unqualified names are looked up in, separated by commas and quoted where SQL needs it.
    pub fn search_path(mut self, schemas: impl Into<Arc<str>>) -> Self {
        self.settings.search_path = schemas.into();
        self
    }

    /// The database of the data source named `default`.
    pub fn environment(mut self, source: EnvironmentSource) -> Self {
        self.settings.environment = Some(source);
        self
    }
}

impl<S: ConnectorSettings> Builder<S> {
    /// Refuses to start while any of these tables of the data plane can be read through the control plane: code that
    /// forgot to change planes would go on working there, on rows that nobody else sees.
    pub fn refuse_misplaced<'a>(
        self,
        control: &ControlDb,
        tables: impl IntoIterator<Item = &'a str>,
    ) -> CheckedBuilder<S> {
        let tables = tables.into_iter().map(String::from).collect();
        CheckedBuilder {
            builder: self,
            control: control.clone(),
            tables,
        }
    }
}

/// A builder that asks the control plane before it builds.
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct CheckedBuilder<S> {
    builder: Builder<S>,
    control: ControlDb,
    tables: Vec<String>,
}

impl<S: ConnectorSettings> CheckedBuilder<S> {
    /// Makes the router.
    ///
    /// # Errors
    /// [`MisplacedTables`](ErrorKind::MisplacedTables), which names them; those of [`Builder::build`]; and whatever
    /// keeps the control plane from being asked.
    ///
    /// # Cancel safety
    /// Safe: reads only.
    pub async fn build(self) -> Result<Biplane<<S::Connector as Connector>::Handle>, Error> {
        let tables: Vec<&str> = self.tables.iter().map(String::as_str).collect();
        let misplaced = self.control.misplaced_tables(&tables).await?;
        if !misplaced.is_empty() {
            return Err(Error::new(ErrorKind::MisplacedTables).detail(format!(
                "the control plane's role can read {}; drop them there or revoke SELECT",
                misplaced.join(", ")
            )));
        }
        self.builder.build()
    }
}

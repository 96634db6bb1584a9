//! The older systems, as their developers left them: a CRM with encrypted values, and a platform of cities whose URLs
//! stand in plain text. Nothing here uses biplane; it makes what there is to import.

use std::fmt;

use aes_gcm::{
    AesGcm, Key, Nonce,
    aead::{AeadInOut, KeyInit, consts::U16},
    aes::Aes256,
};
use base64ct::{Base64, Encoding};
use secrecy::SecretString;
use sqlx::types::Json;

use crate::{
    Result,
    servers::{Servers, new_password},
};

const CRM: &str = "
    create table tenants (
        id uuid primary key,
        slug text not null unique,
        name text not null,
        region text not null,
        pool_settings jsonb not null,
        encrypted_url text not null,
        encrypted_restricted_key text not null,
        encrypted_service_key text not null,
        service_user text not null,
        value_encoding text not null
    )";
const CITIES: &str = "
    create table cities (
        slug text primary key,
        name text not null,
        logo text not null,
        colours jsonb not null,
        custom_domain text unique,
        db_url text not null
    )";
/// What every tenant has, in a database of its own.
const BUSINESS: &str = "
    create table note (id bigint generated always as identity primary key, text text not null)";

/// The databases of the older systems, and every secret in them.
pub(crate) struct OlderSystems {
    /// The database of the CRM, on the server of the control plane.
    pub(crate) crm: String,
    /// The database of the cities, on the same server.
    pub(crate) cities: String,
    /// The key of the CRM, from its environment.
    pub(crate) key: SecretString,
    /// The tenants' databases, with the place of the server.
    pub(crate) homes: Vec<(usize, String)>,
    /// All that must not be readable anywhere later.
    pub(crate) secrets: Vec<String>,
    /// Those of them that the cities kept in plain text.
    pub(crate) plain: Vec<String>,
}

impl OlderSystems {
    pub(crate) async fn set_up(servers: &Servers) -> Result<Self> {
        let key: [u8; 32] = random()?;
        let key_text = hex(&key);
        let mut older = Self {
            crm: servers.name("crm"),
            cities: servers.name("cities"),
            secrets: vec![key_text.clone()],
            key: SecretString::from(key_text),
            homes: Vec::new(),
            plain: Vec::new(),
        };
        for (database, table) in [(&older.crm, CRM), (&older.cities, CITIES)] {
            servers.control.create_database(database).await?;
            servers.control.sql(database, table).await?;
        }
        older.fill_crm(servers, &key).await?;
        older.fill_cities(servers).await?;
        Ok(older)
    }

    async fn fill_crm(&mut self, servers: &Servers, key: &[u8; 32]) -> Result {
        // Slug, name, region, pool, server, what its values are written in, and what its row says they are.
        let tenants = [
            (
                "acme",
                "Acme Corporation",
                "eu-central-1",
                (2, 10),
                0,
                base64 as Write,
                "base64",
            ),
            ("globex", "Globex", "us-east-1", (1, 5), 1, hex as Write, "hex"),
            // The outage of that system: values in hex, and a reader that expects base64.
            ("hooli", "Hooli", "us-west-2", (2, 10), 0, hex as Write, "base64"),
            // Not a database at all: somebody copied the address of the API.
            (
                "initech",
                "Initech",
                "eu-central-1",
                (2, 10),
                1,
                base64 as Write,
                "base64",
            ),
        ];
        let mut connection = servers.control.connect(&self.crm).await?;
        for (slug, name, region, (min, max), place, write, declared) in tenants {
            let (restricted, service) = (new_password(), new_password());
            let url = match slug {
                "initech" => "https://initech-crm.api.example/rest/v1".to_owned(),
                _ => self.crm_home(servers, place, slug, &restricted, &service).await?,
            };
            let seal = |text: &str| encrypt(key, text, write);
            let sealed = [seal(&url)?, seal(&restricted)?, seal(&service)?];
            sqlx::query("insert into tenants values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)")
                .bind(uuid::Uuid::new_v4())
                .bind(slug)
                .bind(name)
                .bind(region)
                .bind(Json(serde_json::json!({ "min": min, "max": max })))
                .bind(&sealed[0])
                .bind(&sealed[1])
                .bind(&sealed[2])
                .bind(servers.name(&format!("{slug}_service")))
                .bind(declared)
                .execute(&mut connection)
                .await?;
            self.secrets.extend([url, restricted, service]);
            self.secrets.extend(sealed);
        }
        Ok(())
    }

    /// A database with two logins: one for the service's own work, one for what that must not do.
    async fn crm_home(
        &mut self,
        servers: &Servers,
        place: usize,
        slug: &str,
        restricted: &str,
        service: &str,
    ) -> Result<String> {
        let server = &servers.data[place];
        let database = servers.name(slug);
        let user = servers.name(&format!("{slug}_app"));
        let service_user = servers.name(&format!("{slug}_service"));
        server.create_database(&database).await?;
        server.create_role(&user, restricted).await?;
        server.create_role(&service_user, service).await?;
        let grants = format!(
            "{BUSINESS}; grant select, insert on note to {user};
             grant select, insert, update, delete on note to {service_user}"
        );
        server.sql(&database, &grants).await?;
        self.homes.push((place, database.clone()));
        Ok(server.url(&user, None, &database, ""))
    }

    async fn fill_cities(&mut self, servers: &Servers) -> Result {
        let cities = [
            (
                "springfield",
                "Springfield",
                Some("www.springfield.example"),
                0,
                "",
            ),
            ("shelbyville", "Shelbyville", None, 1, "&connection_limit=15"),
            (
                "ogdenville",
                "Ogdenville",
                Some("hello.ogdenville.example"),
                1,
                "",
            ),
        ];
        let mut connection = servers.control.connect(&self.cities).await?;
        for (slug, name, domain, place, parameters) in cities {
            let server = &servers.data[place];
            let (database, user, password) = (
                servers.name(slug),
                servers.name(&format!("{slug}_app")),
                new_password(),
            );
            server.create_database(&database).await?;
            server.create_role(&user, &password).await?;
            let grants = format!("{BUSINESS}; grant select, insert, update, delete on note to {user}");
            server.sql(&database, &grants).await?;
            let url = server.url(&user, Some(&password), &database, parameters);
            sqlx::query("insert into cities values ($1, $2, $3, $4, $5, $6)")
                .bind(slug)
                .bind(name)
                .bind(format!("/logos/{slug}.svg"))
                .bind(Json(
                    serde_json::json!({ "primary": "#ffd90f", "accent": "#009dd9" }),
                ))
                .bind(domain)
                .bind(&url)
                .execute(&mut connection)
                .await?;
            self.homes.push((place, database));
            self.plain.push(url.clone());
            self.secrets.extend([url, password]);
        }
        Ok(())
    }
}

impl fmt::Display for OlderSystems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tables tenants and cities, {} databases on two servers, {} secrets to look for later",
            self.homes.len(),
            self.secrets.len()
        )
    }
}

type Write = fn(&[u8]) -> String;

/// As the CRM did it, in TypeScript: AES-256-GCM with an IV of 16 bytes and no additional data, `iv:authTag:ciphertext`.
fn encrypt(key: &[u8; 32], text: &str, write: Write) -> Result<String> {
    let cipher = AesGcm::<Aes256, U16>::new(&Key::<AesGcm<Aes256, U16>>::from(*key));
    let iv: [u8; 16] = random()?;
    let mut bytes = text.as_bytes().to_vec();
    let tag = cipher
        .encrypt_inout_detached(&Nonce::<U16>::from(iv), &[], bytes.as_mut_slice().into())
        .map_err(|_| "a short text can always be encrypted")?;
    Ok([&iv[..], &tag, &bytes].map(write).join(":"))
}

fn base64(bytes: &[u8]) -> String {
    Base64::encode_string(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| "the operating system gave no random bytes")?;
    Ok(bytes)
}

//! The ways to name a tenant.

use std::fmt;

use super::{Domain, Slug, TenantId};

/// A borrowed name: what a lookup takes. Making one neither allocates nor copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TenantRef<'a> {
    /// By id.
    Id(TenantId),
    /// By slug.
    Slug(&'a Slug),
    /// By custom domain.
    Domain(&'a Domain),
}

impl TenantRef<'_> {
    /// The same name, owned.
    #[must_use]
    pub fn to_name(&self) -> TenantName {
        match *self {
            Self::Id(id) => TenantName::Id(id),
            Self::Slug(slug) => TenantName::Slug(*slug),
            Self::Domain(domain) => TenantName::Domain(domain.clone()),
        }
    }
}

/// An owned name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TenantName {
    /// By id.
    Id(TenantId),
    /// By slug.
    Slug(Slug),
    /// By custom domain.
    Domain(Domain),
}

impl TenantName {
    /// The same name, borrowed.
    #[must_use]
    pub fn as_ref(&self) -> TenantRef<'_> {
        match self {
            Self::Id(id) => TenantRef::Id(*id),
            Self::Slug(slug) => TenantRef::Slug(slug),
            Self::Domain(domain) => TenantRef::Domain(domain),
        }
    }
}

impl From<TenantId> for TenantRef<'_> {
    fn from(id: TenantId) -> Self {
        Self::Id(id)
    }
}

impl From<&TenantId> for TenantRef<'_> {
    fn from(id: &TenantId) -> Self {
        Self::Id(*id)
    }
}

impl<'a> From<&'a Slug> for TenantRef<'a> {
    fn from(slug: &'a Slug) -> Self {
        Self::Slug(slug)
    }
}

impl<'a> From<&'a Domain> for TenantRef<'a> {
    fn from(domain: &'a Domain) -> Self {
        Self::Domain(domain)
    }
}

impl<'a> From<&'a TenantName> for TenantRef<'a> {
    fn from(name: &'a TenantName) -> Self {
        name.as_ref()
    }
}

impl fmt::Display for TenantRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => fmt::Display::fmt(id, f),
            Self::Slug(slug) => fmt::Display::fmt(slug, f),
            Self::Domain(domain) => fmt::Display::fmt(domain, f),
        }
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_ref(), f)
    }
}

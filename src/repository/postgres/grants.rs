//! Who may do what in the control plane.

use crate::plane::RoleName;

/// The database roles that get to use the control plane, each with exactly what it needs.
///
/// Whoever installs the schema owns it and needs nothing granted. No role of a running service should be the owner:
/// triggers keep the audit from everybody, but an owner can drop triggers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Grants {
    /// Routers: read, and say that they live and which keys they have. The audit is not theirs to read.
    pub router: Option<RoleName>,
    /// Whoever adds tenants and changes them, seals credentials anew, says which instances are dead, and freezes routing or
    /// lets changes past its brakes. Names, change log and audit are written by triggers alone.
    pub admin: Option<RoleName>,
}

impl Grants {
    /// Nobody but the owner.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Lets this role route.
    #[must_use]
    pub fn router(mut self, role: RoleName) -> Self {
        self.router = Some(role);
        self
    }

    /// Lets this role write tenants.
    #[must_use]
    pub fn admin(mut self, role: RoleName) -> Self {
        self.admin = Some(role);
        self
    }

    /// The statements. What a role had before in the schema is taken away first, so that afterwards it has exactly this.
    pub(super) fn sql(&self) -> String {
        let mut sql = String::new();
        let mut for_role = |role: &RoleName, grants: &[&str]| {
            let role = role.quoted();
            for kind in ["tables", "sequences", "functions"] {
                sql.push_str(&format!(
                    "revoke all on all {kind} in schema biplane_control from {role};\n"
                ));
            }
            sql.push_str(&format!(
                "revoke all on schema biplane_control from {role};\n\
                 grant usage on schema biplane_control to {role};\n"
            ));
            for grant in grants {
                sql.push_str(&format!("grant {grant} to {role};\n"));
            }
        };
        if let Some(role) = &self.router {
            for_role(
                role,
                &[
                    "select on biplane_control.migration, biplane_control.meta, biplane_control.data_source, \
                     biplane_control.tenant, biplane_control.tenant_name, biplane_control.credential, \
                     biplane_control.change, biplane_control.instance, biplane_control.instance_key",
                    "execute on function biplane_control.beat(uuid, text, bigint, jsonb), \
                     biplane_control.leave(uuid)",
                ],
            );
        }
        if let Some(role) = &self.admin {
            for_role(
                role,
                &[
                    "select on all tables in schema biplane_control",
                    "insert, update on biplane_control.data_source, biplane_control.tenant, \
                     biplane_control.credential",
                    "execute on function biplane_control.prune_changes(interval), \
                     biplane_control.reseal_credentials(uuid[], text[], text[], text[], text[]), \
                     biplane_control.leave(uuid), biplane_control.release_brake(), biplane_control.freeze(), \
                     biplane_control.thaw()",
                ],
            );
        }
        sql
    }
}

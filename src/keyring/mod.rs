//! Seals small secrets for one owner and one field.

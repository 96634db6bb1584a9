//! The public types of the crate, read from its source.
//!
//! rustdoc knows them too, but its JSON is for nightly compilers alone, and its HTML lies in a directory that cargo
//! shares between checkouts and does not watch. So the modules are walked from `lib.rs` as the compiler does, through
//! `pub mod` and `pub use`. What the walk cannot follow stops it: it never passes over something in silence.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{Attribute, Item, ItemMod, Type, UseTree, Visibility};

/// What the source says about types.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// The public types, each by the shortest path that the crate gives it, such as `keyring::KeyId`.
    pub(crate) types: BTreeSet<String>,
    /// By the name alone: the traits of interest that a type implements or derives.
    traits: BTreeMap<String, BTreeSet<String>>,
    /// The macros whose expansion holds `pub struct` and the like.
    makers: BTreeSet<String>,
}

/// The traits by which a value comes to be seen, and the one by which it comes to be.
const TRAITS: [&str; 5] = ["Debug", "Display", "Serialize", "Deserialize", "Error"];

impl Source {
    pub(crate) fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut source = Self::default();
        source.read_traits(&root);
        let lib = Module::of_file(&root.join("lib.rs"), &root);
        source.walk(&lib, "");
        source
    }

    /// Whether a type implements or derives a trait. Types of one name are not told apart.
    pub(crate) fn implements(&self, path: &str, wanted: &str) -> bool {
        let name = path.rsplit("::").next().unwrap_or(path);
        self.traits
            .get(name)
            .is_some_and(|traits| traits.contains(wanted))
    }

    fn walk(&mut self, module: &Module, path: &str) {
        for item in &module.items {
            match item {
                Item::Struct(item) if is_public(&item.vis) => self.add(path, &item.ident),
                Item::Enum(item) if is_public(&item.vis) => self.add(path, &item.ident),
                Item::Union(item) if is_public(&item.vis) => self.add(path, &item.ident),
                Item::Type(item) if is_public(&item.vis) => self.add(path, &item.ident),
                Item::Mod(item) if is_public(&item.vis) && is_built(&item.attrs) => {
                    self.walk(&module.child(item), &format!("{path}{}::", item.ident));
                }
                Item::Use(item) if is_public(&item.vis) && is_built(&item.attrs) => {
                    self.add_uses(module, path, &item.tree, &mut Vec::new());
                }
                Item::Macro(item) if item.ident.is_none() => {
                    let name = item.mac.path.segments.last().map(|last| last.ident.to_string());
                    let makes = name.is_some_and(|name| self.makers.contains(&name));
                    assert!(
                        !makes,
                        "a macro makes types in the public module {path}: write them out"
                    );
                }
                _ => {}
            }
        }
    }

    fn add(&mut self, path: &str, name: &impl ToString) {
        self.types.insert(format!("{path}{}", name.to_string()));
    }

    /// What is used from a private module is public here. What is used from a public one is listed there.
    fn add_uses(&mut self, module: &Module, path: &str, tree: &UseTree, from: &mut Vec<String>) {
        match tree {
            UseTree::Path(part) => {
                let depth = from.len();
                if !["self", "crate"].contains(&part.ident.to_string().as_str()) {
                    from.push(part.ident.to_string());
                }
                self.add_uses(module, path, &part.tree, from);
                from.truncate(depth);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_uses(module, path, tree, from);
                }
            }
            UseTree::Glob(_) => panic!("{path} has a `pub use` of everything: name what it is"),
            UseTree::Name(name) => self.add_use(module, path, &name.ident.to_string(), from),
            UseTree::Rename(name) => self.add_use(module, path, &name.rename.to_string(), from),
        }
    }

    fn add_use(&mut self, module: &Module, path: &str, name: &str, from: &[String]) {
        // Functions, modules and constants are written otherwise.
        if !name.starts_with(char::is_uppercase) || !name.contains(char::is_lowercase) {
            return;
        }
        let mut place = module.clone();
        for part in from {
            let Some(child) = place.module(part) else {
                // Of another crate.
                return;
            };
            if is_public(&child.vis) {
                return;
            }
            place = place.child(child);
        }
        if !place.is_trait(name) {
            self.add(path, &name);
        }
    }

    fn read_traits(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).expect("the folder can be read") {
            let path = entry.expect("the entry can be read").path();
            if path.is_dir() {
                self.read_traits(&path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let items = parsed(&path);
                self.traits_of(&items);
            }
        }
    }

    fn traits_of(&mut self, items: &[Item]) {
        for item in items {
            match item {
                Item::Struct(item) => self.derives(&item.ident, &item.attrs),
                Item::Enum(item) => self.derives(&item.ident, &item.attrs),
                Item::Mod(item) => self.traits_of(item.content.as_ref().map_or(&[], |(_, items)| items)),
                Item::Impl(item) => {
                    if let (Some((_, implemented, _)), Type::Path(of)) = (&item.trait_, &*item.self_ty) {
                        let last = |path: &syn::Path| path.segments.last().map(|last| last.ident.to_string());
                        if let (Some(implemented), Some(of)) = (last(implemented), last(&of.path)) {
                            self.implemented(of, implemented);
                        }
                    }
                }
                Item::Macro(item) => {
                    if let Some(name) = &item.ident
                        && makes_types(item.mac.tokens.clone())
                    {
                        self.makers.insert(name.to_string());
                    }
                }
                _ => {}
            }
        }
    }

    fn derives(&mut self, name: &impl ToString, attributes: &[Attribute]) {
        for attribute in attributes
            .iter()
            .filter(|attribute| attribute.path().is_ident("derive"))
        {
            let add = |meta: syn::meta::ParseNestedMeta<'_>| {
                if let Some(last) = meta.path.segments.last() {
                    self.implemented(name.to_string(), last.ident.to_string());
                }
                Ok(())
            };
            attribute.parse_nested_meta(add).expect("a derive names traits");
        }
    }

    fn implemented(&mut self, of: String, implemented: String) {
        if TRAITS.contains(&implemented.as_str()) {
            let traits = self.traits.entry(of).or_default();
            if implemented == "Error" {
                // By thiserror, or by hand beside it.
                traits.insert("Display".to_owned());
            }
            traits.insert(implemented);
        }
    }
}

/// A module, and the folder of its children.
#[derive(Clone)]
struct Module {
    items: Vec<Item>,
    folder: PathBuf,
}

impl Module {
    fn of_file(file: &Path, folder: &Path) -> Self {
        Self {
            items: parsed(file),
            folder: folder.to_owned(),
        }
    }

    fn module(&self, name: &str) -> Option<&ItemMod> {
        self.items.iter().find_map(|item| match item {
            Item::Mod(item) if item.ident == name => Some(item),
            _ => None,
        })
    }

    fn child(&self, item: &ItemMod) -> Self {
        let name = item.ident.to_string();
        let folder = self.folder.join(&name);
        if let Some((_, items)) = &item.content {
            let items = items.clone();
            return Self { items, folder };
        }
        let beside = self.folder.join(format!("{name}.rs"));
        let within = folder.join("mod.rs");
        let file = if beside.exists() { beside } else { within };
        Self::of_file(&file, &folder)
    }

    fn is_trait(&self, name: &str) -> bool {
        self.items
            .iter()
            .any(|item| matches!(item, Item::Trait(item) if item.ident == name))
    }
}

fn parsed(file: &Path) -> Vec<Item> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    syn::parse_file(&text)
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        .items
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Features are all on when this runs; what is only there for tests is nobody's.
fn is_built(attributes: &[Attribute]) -> bool {
    !attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && words(
                attribute
                    .meta
                    .require_list()
                    .map(|list| list.tokens.clone())
                    .unwrap_or_default(),
            )
            .iter()
            .any(|word| ["test", "doctest", "biplane_shuttle"].contains(&word.as_str()))
    })
}

fn makes_types(tokens: TokenStream) -> bool {
    let words = words(tokens);
    words
        .windows(2)
        .any(|pair| pair[0] == "pub" && ["struct", "enum", "union", "type"].contains(&pair[1].as_str()))
}

fn words(tokens: TokenStream) -> Vec<String> {
    tokens
        .into_iter()
        .flat_map(|token| match token {
            TokenTree::Group(group) => words(group.stream()),
            TokenTree::Ident(word) => vec![word.to_string()],
            _ => Vec::new(),
        })
        .collect()
}

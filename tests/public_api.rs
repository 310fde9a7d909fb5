// SPDX-License-Identifier: MIT OR Apache-2.0
//! The public interface, like a header in C, is in `tests/public-api.txt`. It must be the interface that the sources
//! have, so that a review sees every change of it. It is made from the sources alone, so each compiler makes the same.
//!
//! It shows what a user can name: exported types with their public fields, signatures, derived and written
//! implementations. It does not show which types are `Send` and `Sync`: `src/collector.rs` tests that.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "a test that cannot go on shall say where"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use syn::visit_mut::{self, VisitMut};
use syn::{
    Attribute, Block, Field, FieldsNamed, FieldsUnnamed, File, ImplItem, Item, ItemImpl, Receiver,
    ReceiverKind, TraitItemFn, Type, UseTree, Variant, Visibility, parse_quote,
};

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/public-api.txt");

#[test]
fn the_public_interface_is_that_of_the_snapshot() {
    let now = Path::new(env!("CARGO_TARGET_TMPDIR")).join("public-api.txt");
    fs::write(&now, interface(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")))).unwrap();
    let diff = Command::new("diff").args(["-U5", SNAPSHOT]).arg(&now).output().unwrap();
    assert!(
        diff.status.success(),
        "the public interface has changed:\n{}{}\nIf it should, say so in CHANGELOG.md, and run\ncp {} {SNAPSHOT}",
        String::from_utf8_lossy(&diff.stdout),
        String::from_utf8_lossy(&diff.stderr),
        now.display(),
    );
}

fn interface(sources: &Path) -> String {
    let mut items = Vec::new();
    read(sources, &mut items);
    let root = syn::parse_file(&fs::read_to_string(sources.join("lib.rs")).unwrap()).unwrap();
    let names = exports(&root);
    let own_traits = items.iter().filter_map(|item| match item {
        Item::Trait(item) => Some(item.ident.to_string()),
        _ => None,
    });
    let hidden_traits: BTreeSet<_> = own_traits.filter(|name| !names.contains(name)).collect();
    let mut groups: BTreeMap<String, Vec<(Part, String)>> = BTreeMap::new();
    for mut item in items.into_iter().flat_map(one_by_one) {
        if let Some((name, part)) = shown(&mut item, &names, &hidden_traits) {
            groups.entry(name).or_default().push((part, text(item)));
        }
    }
    for name in &names {
        // A crate of others that is exported has no definition here.
        groups.entry(name.clone()).or_insert_with(|| vec![(Part::Definition, format!("pub use {name};\n"))]);
    }
    groups.into_iter().map(|(name, group)| in_order(&name, group)).collect()
}

/// What is shown of a name, in this order.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Definition,
    Function,
    Trait,
    Macro,
}

/// Inherent functions become one block: in which they stand in the sources makes no difference.
fn in_order(name: &str, mut parts: Vec<(Part, String)>) -> String {
    parts.sort();
    let (functions, mut others): (Vec<_>, Vec<_>) =
        parts.into_iter().partition(|(part, _)| *part == Part::Function);
    let functions: String = functions.into_iter().map(|(_, text)| text).collect();
    let others_begin = usize::from(others.first().is_some_and(|(part, _)| *part == Part::Definition));
    others.insert(others_begin, (Part::Function, functions.replace(&format!("}}\nimpl {name} {{\n"), "")));
    others.into_iter().map(|(_, text)| text).chain(["\n".into()]).collect()
}

/// The items of all files, and of modules within them; not those of tests.
fn read(directory: &Path, items: &mut Vec<Item>) {
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read(&path, items);
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            let file = syn::parse_file(&fs::read_to_string(&path).unwrap());
            flatten(file.unwrap_or_else(|e| panic!("{}: {e}", path.display())).items, items);
        }
    }
}

fn flatten(from: Vec<Item>, items: &mut Vec<Item>) {
    for item in from {
        match item {
            Item::Mod(module) if is(&module.attrs, "cfg") => {}
            Item::Mod(module) => flatten(module.content.map_or(Vec::new(), |(_, items)| items), items),
            item => items.push(item),
        }
    }
}

/// A block of inherent functions as a block for each; everything else as it is.
fn one_by_one(item: Item) -> Vec<Item> {
    match item {
        Item::Impl(mut block) if block.trait_.is_none() => {
            let parts = std::mem::take(&mut block.items);
            let alone = |part| Item::Impl(ItemImpl { items: vec![part], ..block.clone() });
            parts.into_iter().map(alone).collect()
        }
        item => vec![item],
    }
}

fn is(attrs: &[Attribute], name: &str) -> bool {
    attrs.iter().any(|attr| attr.path().is_ident(name))
}

/// The names that the root of the crate exports.
fn exports(root: &File) -> BTreeSet<String> {
    fn leaves(tree: &UseTree, names: &mut BTreeSet<String>) {
        match tree {
            UseTree::Path(path) => leaves(&path.tree, names),
            UseTree::Group(group) => group.items.iter().for_each(|tree| leaves(tree, names)),
            UseTree::Name(name) => drop(names.insert(name.ident.to_string())),
            _ => panic!("the root of the crate exports things by their names alone"),
        }
    }
    let mut names = BTreeSet::new();
    for item in &root.items {
        match item {
            Item::Use(item) if is_public(&item.vis) => leaves(&item.tree, &mut names),
            _ => {}
        }
    }
    names
}

fn is_public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

/// Under which name an item is shown, and as which part; none if users do not see it. Of implementations only what they
/// see is left.
fn shown(
    item: &mut Item,
    names: &BTreeSet<String>,
    hidden_traits: &BTreeSet<String>,
) -> Option<(String, Part)> {
    let (name, part) = match item {
        Item::Struct(item) if is_public(&item.vis) => (item.ident.to_string(), Part::Definition),
        Item::Enum(item) if is_public(&item.vis) => (item.ident.to_string(), Part::Definition),
        Item::Trait(item) if is_public(&item.vis) => (item.ident.to_string(), Part::Definition),
        Item::Type(item) if is_public(&item.vis) => (item.ident.to_string(), Part::Definition),
        Item::Impl(item) => of_block(item, names, hidden_traits)?,
        // These implement traits for the types that are their arguments.
        Item::Macro(item) if item.ident.is_none() => {
            let arguments = item.mac.tokens.to_string();
            let mut words = arguments.split(|c: char| !c.is_alphanumeric());
            (words.find(|&word| names.contains(word))?.to_owned(), Part::Macro)
        }
        _ => return None,
    };
    names.contains(&name).then_some((name, part))
}

fn of_block(
    block: &mut ItemImpl,
    names: &BTreeSet<String>,
    hidden_traits: &BTreeSet<String>,
) -> Option<(String, Part)> {
    block.items.retain(|part| match part {
        ImplItem::Fn(f) => is_public(&f.vis) && !f.attrs.contains(&parse_quote!(#[doc(hidden)])),
        ImplItem::Const(c) => is_public(&c.vis),
        part => matches!(part, ImplItem::Type(_)),
    });
    let subject = match &*block.self_ty {
        Type::Reference(reference) => last_name(&reference.elem),
        subject => last_name(subject),
    };
    let Some((path, _)) = &block.trait_ else {
        return subject.filter(|_| !block.items.is_empty()).map(|name| (name, Part::Function));
    };
    let of = path.segments.last()?.ident.to_string();
    let is_seen = !hidden_traits.contains(&of);
    // A trait of ours for the types of others is shown with the trait.
    is_seen.then(|| (subject.filter(|name| names.contains(name)).unwrap_or(of), Part::Trait))
}

fn last_name(of: &Type) -> Option<String> {
    match of {
        Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        _ => None,
    }
}

fn text(mut item: Item) -> String {
    Strip.visit_item_mut(&mut item);
    let mut file: File = parse_quote!();
    file.items.push(item);
    prettyplease::unparse(&file).replace(" {}\n", ";\n")
}

/// Leaves of an item what users see.
struct Strip;

impl VisitMut for Strip {
    fn visit_attributes_mut(&mut self, attrs: &mut Vec<Attribute>) {
        const OF_USERS: [&str; 7] =
            ["cfg", "cfg_attr", "default", "deprecated", "derive", "must_use", "non_exhaustive"];
        attrs.retain(|attr| OF_USERS.iter().any(|name| attr.path().is_ident(name)));
    }

    fn visit_block_mut(&mut self, block: &mut Block) {
        block.stmts.clear();
    }

    /// That there is a default is part of the interface.
    fn visit_trait_item_fn_mut(&mut self, item: &mut TraitItemFn) {
        visit_mut::visit_trait_item_fn_mut(self, item);
        item.default = item.default.take().map(|_| parse_quote!({ _ }));
    }

    /// `mut self` is the function's own business.
    fn visit_receiver_mut(&mut self, receiver: &mut Receiver) {
        if matches!(receiver.kind, ReceiverKind::Value) {
            receiver.mutability = None;
        }
    }

    /// All of a variant is public, without a word that says so.
    fn visit_variant_mut(&mut self, variant: &mut Variant) {
        let fields = variant.fields.iter_mut().map(|field| &mut field.attrs);
        fields.chain([&mut variant.attrs]).for_each(|attrs| self.visit_attributes_mut(attrs));
    }

    fn visit_fields_named_mut(&mut self, fields: &mut FieldsNamed) {
        visit_mut::visit_fields_named_mut(self, fields);
        let all = std::mem::take(&mut fields.named);
        let count = all.len();
        fields.named = all.into_iter().filter(|field| is_public(&field.vis)).collect();
        if fields.named.len() < count {
            fields.named.push(parse_quote!(private: _));
        }
    }

    fn visit_fields_unnamed_mut(&mut self, fields: &mut FieldsUnnamed) {
        let hide = |field: &mut Field| field.ty = parse_quote!(_);
        fields.unnamed.iter_mut().filter(|field| !is_public(&field.vis)).for_each(hide);
        visit_mut::visit_fields_unnamed_mut(self, fields);
    }
}

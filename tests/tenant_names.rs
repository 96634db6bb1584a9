//! What can be a tenant's name, and that one name has one spelling.

use std::hash::{BuildHasher, RandomState};

use biplane::tenant::{Domain, DomainError, Slug, SlugError, TenantName, TenantRef};
use proptest::prelude::*;

const ACME: Slug = match Slug::parse("Acme") {
    Ok(slug) => slug,
    Err(_) => panic!("acme is a slug"),
};

/// The rule for slugs, written from its other end: what is left when everything allowed is taken away.
fn is_slug(text: &str) -> bool {
    let allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-";
    text.chars().filter(|c| !allowed.contains(*c)).count() == 0
        && matches!(text.chars().count(), 1..64)
        && text.trim_matches('-') == text
}

/// The rule for domains in plain ASCII: no `xn--` label, port or trailing dot.
fn is_plain_domain(text: &str) -> bool {
    let labels: Vec<&str> = text.split('.').collect();
    let last = labels.last().copied().unwrap_or_default();
    let number = last.chars().all(|c| c.is_ascii_digit())
        || (last.to_lowercase().starts_with("0x") && last[2..].chars().all(|c| c.is_ascii_hexdigit()));
    text.len() <= 253 && labels.len() >= 2 && labels.into_iter().all(is_slug) && !number
}

fn long_domain(len: usize) -> String {
    let mut text = "a.".repeat(len / 2 - 1);
    text.push_str(&"b".repeat(len - text.len()));
    text
}

#[test]
fn a_slug_can_be_checked_at_compile_time() {
    assert_eq!(ACME.as_str(), "acme");
}

#[test]
fn a_slug_is_copied_and_fits_a_cache_line() {
    fn copies<T: Copy>() {}
    copies::<Slug>();
    assert!(size_of::<Slug>() <= 64);
}

#[test]
fn slugs_of_every_permitted_form_are_accepted() {
    for text in [
        "a",
        "7",
        "acme",
        "a-b",
        "a--b",
        "0-0",
        "018f4e7a",
        &"x".repeat(63),
    ] {
        assert_eq!(Slug::parse(text).unwrap().as_str(), text);
    }
}

#[test]
fn a_slug_error_names_the_broken_rule() {
    for (text, error) in [
        ("", SlugError::Empty),
        (&*"x".repeat(64), SlugError::TooLong),
        (&*"x".repeat(1 << 20), SlugError::TooLong),
        ("a_b", SlugError::Character),
        ("a.b", SlugError::Character),
        (" acme", SlugError::Character),
        ("acme\n", SlugError::Character),
        ("a\0", SlugError::Character),
        // The Kelvin sign, which folds to `k` in Unicode.
        ("\u{212a}", SlugError::Character),
        // 40 characters in 80 bytes are not too many.
        (&*"é".repeat(40), SlugError::Character),
        ("-", SlugError::Hyphen),
        ("-a", SlugError::Hyphen),
        ("a-", SlugError::Hyphen),
    ] {
        assert_eq!(
            Slug::parse(text),
            Err(error),
            "{:?}",
            text.get(..20).unwrap_or(text)
        );
    }
}

#[test]
fn slugs_sort_as_their_text_does() {
    let mut slugs = ["b", "a-", "ab", "a", "a0", "a-b"].map(|text| Slug::parse(text).ok());
    slugs.sort();
    let names: Vec<String> = slugs.into_iter().flatten().map(|slug| slug.to_string()).collect();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(names, sorted);
}

#[test]
fn a_domain_loses_case_port_and_one_trailing_dot() {
    for text in [
        "shop.example",
        "Shop.EXAMPLE",
        "shop.example.",
        "shop.example:443",
        "shop.example:1",
        "SHOP.example.:65535",
        "shop。example",
        "shop.example。",
        "ｓｈｏｐ．ｅｘａｍｐｌｅ",
        // A soft hyphen stands for nothing.
        "sh\u{ad}op.example",
    ] {
        assert_eq!(
            Domain::parse(text).map(|d| d.to_string()),
            Ok("shop.example".into()),
            "{text}"
        );
    }
}

#[test]
fn an_international_domain_becomes_its_ascii_form() {
    for (text, ascii) in [
        ("Bücher.example", "xn--bcher-kva.example"),
        ("bu\u{308}cher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("faß.example", "xn--fa-hia.example"),
        ("пример.рф", "xn--e1afmkfd.xn--p1ai"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
    ] {
        assert_eq!(
            Domain::parse(text).map(|d| d.to_string()),
            Ok(ascii.into()),
            "{text}"
        );
    }
}

#[test]
fn hosts_in_use_with_hyphens_in_the_third_place_are_accepted() {
    assert!(Domain::parse("r3---sn-4g5e.example").is_ok());
}

#[test]
fn a_domain_error_names_the_broken_rule() {
    let label63 = "a".repeat(63);
    let ok253 = long_domain(253);
    assert!(Domain::parse(&ok253).is_ok());
    assert!(Domain::parse(&format!("{ok253}.:65535")).is_ok());
    assert!(Domain::parse(&format!("{label63}.example")).is_ok());
    for (text, error) in [
        ("", DomainError::Empty),
        (".", DomainError::Empty),
        ("\u{ad}", DomainError::Empty),
        (":80", DomainError::Empty),
        (".:80", DomainError::Empty),
        (&*long_domain(254), DomainError::TooLong),
        (&*"a.".repeat(1 << 20), DomainError::TooLong),
        (&*"ü".repeat(1 << 20), DomainError::TooLong),
        ("shop.example:", DomainError::Port),
        ("shop.example:0", DomainError::Port),
        ("shop.example:65536", DomainError::Port),
        ("shop.example:+80", DomainError::Port),
        ("shop.example:http", DomainError::Port),
        ("shop.example:80:80", DomainError::Port),
        ("localhost", DomainError::SingleLabel),
        ("localhost:8080", DomainError::SingleLabel),
        ("bücher", DomainError::SingleLabel),
        ("127.0.0.1", DomainError::IpAddress),
        ("127.0.0.1:80", DomainError::IpAddress),
        ("127.0.0.1.", DomainError::IpAddress),
        ("127.1", DomainError::IpAddress),
        ("0x7f.0x1", DomainError::IpAddress),
        ("0X7F.0X", DomainError::IpAddress),
        ("2130706433", DomainError::IpAddress),
        ("１２７.０.０.１", DomainError::IpAddress),
        ("shop.example.1", DomainError::IpAddress),
        ("[::1]", DomainError::IpAddress),
        ("[::1]:80", DomainError::IpAddress),
        ("[v7.x]", DomainError::IpAddress),
        ("::1", DomainError::IpAddress),
        ("::", DomainError::IpAddress),
        ("2001:db8::1", DomainError::IpAddress),
        ("fe80::1%eth0", DomainError::IpAddress),
        ("::ffff:127.0.0.1", DomainError::IpAddress),
        ("shop..example", DomainError::Label),
        (".shop.example", DomainError::Label),
        ("shop.example..", DomainError::Label),
        ("-shop.example", DomainError::Label),
        ("shop-.example", DomainError::Label),
        ("shop.-example", DomainError::Label),
        ("sh_op.example", DomainError::Label),
        ("*.example", DomainError::Label),
        (" shop.example", DomainError::Label),
        ("shop.example\n", DomainError::Label),
        ("shop\0.example", DomainError::Label),
        ("shop.example/path", DomainError::Label),
        ("user@shop.example", DomainError::Label),
        ("shop%2eexample", DomainError::Label),
        (&*format!("{label63}a.example"), DomainError::Label),
        (&*format!("{}.example", "ü".repeat(63)), DomainError::Label),
        // Not Punycode, Punycode of plain ASCII, of upper case, of nothing, and of a leading combining mark.
        ("xn--a.example", DomainError::Idna),
        ("xn--shop-.example", DomainError::Label),
        ("xn--.example", DomainError::Label),
        ("xn--bcher-Kvb9999.example", DomainError::Idna),
        ("\u{301}a.example", DomainError::Idna),
        ("a\u{200d}b.example", DomainError::Idna),
        ("-ü.example", DomainError::Label),
        ("xn----eha.example", DomainError::Idna),
        ("sh／op.example", DomainError::Idna),
        ("\u{fffd}.example", DomainError::Idna),
    ] {
        assert_eq!(
            Domain::parse(text).map(|_| "accepted"),
            Err(error),
            "{:?}",
            text.get(..40).unwrap_or(text)
        );
    }
}

#[test]
fn error_texts_do_not_repeat_the_input() {
    let canary = "canary_c4n4ry.canary";
    let slug = Slug::parse(canary).unwrap_err();
    let domain = Domain::parse(canary).unwrap_err();
    assert!(!format!("{slug} {slug:?} {domain} {domain:?}").contains("c4n4ry"));
    let json = serde_json::to_string(canary).unwrap();
    let slug = serde_json::from_str::<Slug>(&json).unwrap_err();
    let domain = serde_json::from_str::<Domain>(&json).unwrap_err();
    assert!(!format!("{slug} {slug:?} {domain} {domain:?}").contains("c4n4ry"));
}

#[test]
fn names_are_read_from_json_with_escapes_and_from_owned_values() {
    let slug: Slug = serde_json::from_str(r#""\u0041cme""#).unwrap();
    assert_eq!(slug, ACME);
    let domain: Domain = serde_json::from_str(r#""b\u00fccher.example""#).unwrap();
    assert_eq!(domain.as_str(), "xn--bcher-kva.example");
    let slug: Slug = serde_json::from_value(serde_json::json!("ACME")).unwrap();
    assert_eq!(slug, ACME);
    let domain: Domain = serde_json::from_reader(&br#""SHOP.example:80""#[..]).unwrap();
    assert_eq!(domain.as_str(), "shop.example");
    assert!(serde_json::from_str::<Slug>("1").is_err());
}

#[test]
fn a_borrowed_name_and_its_owned_twin_are_the_same_name() {
    let domain = Domain::parse("shop.example").unwrap();
    let id = biplane::tenant::TenantId::new();
    for name in [
        TenantRef::Id(id),
        TenantRef::Slug(&ACME),
        TenantRef::Domain(&domain),
    ] {
        let owned: TenantName = name.to_name();
        assert_eq!(owned.as_ref(), name);
        assert_eq!(owned.to_string(), name.to_string());
    }
}

/// Texts that come near to a name: random strings hardly ever do.
fn near_name() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-zA-Z0-9]{1,8}",
        2 => Just("-".to_owned()),
        3 => Just(".".to_owned()),
        1 => Just("xn--".to_owned()),
        1 => Just("0x".to_owned()),
        1 => Just(":".to_owned()),
        1 => "[a-z]{30,40}",
        1 => prop::sample::select(vec![
            "ü", "ß", "ς", "。", "\u{200d}", "\u{ad}", "ı", "İ", "\u{301}", "א", "٣", "[", "_", "/", "１",
        ])
        .prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn slugs_are_exactly_what_the_rule_says(text in prop_oneof![any::<String>(), near_name(), "[a-z-]{60,66}"]) {
        prop_assert_eq!(Slug::parse(&text).is_ok(), is_slug(&text));
    }

    #[test]
    fn a_slug_is_canonical(text in "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?") {
        let slug = Slug::parse(&text).unwrap();
        let same = Slug::parse(&text.to_ascii_uppercase()).unwrap();
        prop_assert_eq!(slug, same);
        prop_assert_eq!(slug.as_str(), text.to_ascii_lowercase());
        prop_assert_eq!(Slug::parse(slug.as_str()), Ok(slug));
        let json = serde_json::to_string(&slug).unwrap();
        prop_assert_eq!(serde_json::from_str::<Slug>(&json).unwrap(), slug);
        let hasher = RandomState::new();
        prop_assert_eq!(hasher.hash_one(slug), hasher.hash_one(same));
    }

    #[test]
    fn plain_domains_are_exactly_what_the_rule_says(
        text in prop_oneof!["[a-zA-Z0-9.-]{0,20}", "([a-zA-Z0-9-]{1,70}\\.){1,5}[a-z0-9]{1,4}", "[ -~]{0,12}"]
    ) {
        let lower = text.to_ascii_lowercase();
        prop_assume!(!lower.contains("xn--") && !lower.contains(':') && !lower.ends_with('.'));
        prop_assert_eq!(Domain::parse(&text).is_ok(), is_plain_domain(&text), "{}", text);
    }

    #[test]
    fn a_domain_is_canonical(text in prop_oneof![any::<String>(), near_name()]) {
        if let Ok(domain) = Domain::parse(&text) {
            prop_assert!(is_plain_domain(domain.as_str()), "{text:?} became {domain}");
            prop_assert_eq!(domain.as_str(), domain.as_str().to_ascii_lowercase());
            prop_assert_eq!(Domain::parse(domain.as_str()), Ok(domain.clone()));
            let unicode = idna::domain_to_unicode(domain.as_str()).0;
            prop_assert_eq!(Domain::parse(&unicode), Ok(domain.clone()));
            let host = format!("{}.:8443", domain.as_str().to_ascii_uppercase());
            prop_assert_eq!(Domain::parse(&host), Ok(domain.clone()));
            let json = serde_json::to_string(&domain).unwrap();
            prop_assert_eq!(serde_json::from_str::<Domain>(&json).unwrap(), domain);
        }
    }
}

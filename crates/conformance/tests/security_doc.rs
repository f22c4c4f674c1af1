//! `docs/security.md` lists the attacks that are carried out, all of them and no others.

#[test]
fn the_documentation_lists_every_attack() {
    let document = include_str!("../../../docs/security.md");
    let (_, list) = document.split_once("<!-- attacks -->\n").unwrap();
    let (list, _) = list.split_once("<!-- end of attacks -->").unwrap();
    let attacks = stacyvm_conformance::attacks();
    assert!(attacks.len() >= 60, "{} attacks", attacks.len());
    let rows = attacks.iter().map(|check| format!("| `{}` | {} |\n", check.id, check.promise));
    let expected = format!("| attack | what must hold |\n|---|---|\n{}", rows.collect::<String>());
    assert!(list == expected, "the list in docs/security.md is to be:\n{expected}");
}

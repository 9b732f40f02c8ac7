//! What is read of drawings, and what is not.

use super::*;
use proptest::prelude::*;

/// Groups as a file has them.
fn file(groups: &[(i32, &str)]) -> Vec<u8> {
    let lines = groups.iter().map(|(code, value)| format!("{code:>3}\r\n{value}\r\n"));
    lines.collect::<String>().into_bytes()
}

fn entities(groups: &[(i32, &str)]) -> Vec<u8> {
    let mut all = vec![(999, "made by hand"), (0, "SECTION"), (2, "ENTITIES")];
    all.extend(groups);
    all.extend([(0, "ENDSEC"), (0, "EOF")]);
    file(&all)
}

/// A little of everything.
const HOUSE: &[(i32, &str)] = &[
    (0, "SECTION"),
    (2, "HEADER"),
    (9, "$ACADVER"),
    (1, "AC1015"),
    (0, "ENDSEC"),
    (0, "SECTION"),
    (2, "TABLES"),
    (0, "TABLE"),
    (2, "LAYER"),
    (0, "LAYER"),
    (2, "0"),
    (70, "0"),
    (62, "7"),
    (0, "LAYER"),
    (2, "hidden"),
    (62, "-3"),
    (0, "ENDTAB"),
    (0, "ENDSEC"),
    (0, "SECTION"),
    (2, "ENTITIES"),
    (0, "LINE"),
    (8, "0"),
    (10, "0"),
    (20, "0"),
    (11, "100.0"),
    (21, "0"),
    (0, "CIRCLE"),
    (8, "hidden"),
    (10, "50"),
    (20, "50"),
    (40, "50"),
    (0, "LWPOLYLINE"),
    (8, "walls"),
    (70, "1"),
    (10, "1"),
    (20, "2"),
    (10, "3"),
    (20, "-4"),
    (0, "POLYLINE"),
    (70, "0"),
    (0, "VERTEX"),
    (10, "5"),
    (20, "6"),
    (0, "SEQEND"),
    (0, "TEXT"),
    (10, "7"),
    (20, "8"),
    (40, "2.5"),
    (1, "<b>hello</b>"),
    (0, "3DSOLID"),
    (1, "whatever"),
    (0, "ENDSEC"),
    (0, "EOF"),
];

#[test]
fn entities_layers_and_bounds_are_read() {
    let bytes = file(HOUSE);
    let drawing = parse(&bytes).unwrap();
    let kinds: Vec<&str> = drawing.entities.iter().map(|entity| entity.kind.as_str()).collect();
    assert_eq!(kinds, ["LINE", "CIRCLE", "LWPOLYLINE", "POLYLINE", "TEXT", "3DSOLID"]);
    let point = |x, y| Point { x, y };
    assert_eq!(
        drawing.entities[0].shape,
        Shape::Line { start: point(0.0, 0.0), end: point(100.0, 0.0) }
    );
    assert_eq!(
        drawing.entities[2].shape,
        Shape::Polyline { points: vec![point(1.0, 2.0), point(3.0, -4.0)], is_closed: true }
    );
    assert_eq!(
        drawing.entities[3].shape,
        Shape::Polyline { points: vec![point(5.0, 6.0)], is_closed: false }
    );
    assert_eq!(drawing.bounds, Some(Bounds { min: point(0.0, -4.0), max: point(100.0, 100.0) }));
    let layers: Vec<_> =
        drawing.layers.iter().map(|l| (l.name.as_str(), l.color, l.is_visible)).collect();
    assert_eq!(layers, [("0", 7, true), ("hidden", 3, false), ("walls", 7, true)]);
}

#[test]
fn names_come_in_the_drawing_s_code_page() {
    let mut bytes = file(&[(0, "SECTION"), (2, "HEADER"), (9, "$DWGCODEPAGE"), (3, "ANSI_936")]);
    bytes.extend(file(&[(0, "ENDSEC"), (0, "SECTION"), (2, "ENTITIES"), (0, "POINT")]));
    bytes.extend(b"8\n\xc7\xbd\xcc\xe5\n");
    bytes.extend(file(&[(0, "ENDSEC"), (0, "EOF")]));
    assert_eq!(parse(&bytes).unwrap().entities[0].layer, "墙体");
}

#[test]
fn what_is_closed_damaged_or_cut_is_said() {
    assert_eq!(parse(b"AC1032\0"), Err(DrawingError::Format("DWG")));
    let binary = parse(b"AutoCAD Binary DXF\r\n\x1a\0");
    assert_eq!(binary, Err(DrawingError::Format("binary DXF")));
    assert_eq!(parse(b""), Err(DrawingError::Cut));
    assert_eq!(parse(b"<html>\n</html>"), Err(DrawingError::Damaged(1)));
    let whole = entities(&[(0, "LINE"), (10, "1"), (20, "2")]);
    assert!(parse(&whole).is_ok());
    for end in 0..whole.len() - "EOF\r\n".len() {
        assert!(parse(&whole[..end]).is_err(), "{end}");
    }
    for number in ["NaN", "inf", "1e999", "x", ""] {
        let wrong = entities(&[(0, "LINE"), (10, number)]);
        assert!(matches!(parse(&wrong), Err(DrawingError::Damaged(_))), "{number}");
    }
}

#[test]
fn attack_13_a_drawing_is_bounded_in_all_that_it_makes_us_keep() {
    let many: Vec<(i32, &str)> = vec![(0, "A"); ENTITIES_MAX + 1];
    assert_eq!(parse(&entities(&many)), Err(DrawingError::TooLarge("100000 entities")));
    let mut many = vec![(0, "LWPOLYLINE")];
    many.extend(vec![(10, "1"); POINTS_MAX + 1]);
    assert_eq!(parse(&entities(&many)), Err(DrawingError::TooLarge("1000000 points")));
    assert_eq!(parse(&vec![b'0'; BYTES_MAX + 1]), Err(DrawingError::TooLarge("10 MiB")));
    let long = "x".repeat(100_000);
    let drawing = parse(&entities(&[(0, "TEXT"), (8, &long), (1, &long)])).unwrap();
    assert_eq!(drawing.entities[0].layer.len(), TEXT_BYTES_MAX);
}

proptest! {
    #[test]
    fn no_bytes_stop_the_reader(
        groups in proptest::collection::vec((-5i32..80, "[-0-9A-Z.e\\x00-\\x20é]{0,9}"), 0..60)
    ) {
        let kinds = ["LINE", "POLYLINE", "VERTEX", "SEQEND", "LAYER", "ENDSEC", "SECTION"];
        let groups: Vec<(i32, &str)> = groups
            .iter()
            .map(|(code, value)| match code {
                -5..8 => (0, kinds[(*code + 5) as usize % kinds.len()]),
                _ => (*code, value.as_str()),
            })
            .collect();
        let _ = parse(&entities(&groups));
    }
}

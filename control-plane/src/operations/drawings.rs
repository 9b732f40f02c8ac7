//! What is drawn in a DXF file: entities, layers and bounds.
//!
//! A DXF is pairs of lines, a code and a value. This reads them once, front to back, and keeps what
//! faces show; the blocks, dimensions and objects of the rest are passed over. Time is that of
//! reading, and memory is bounded by the number of entities and points, whatever the file says. The
//! usual crate keeps whole drawings of any size, needs two dozen more for pictures and calendars,
//! and can be stopped by neither.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use encoding_rs::Encoding;

/// What is drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawing {
    /// In the order of the file.
    pub entities: Vec<Entity>,
    /// In the order of the file; those that only entities name stand behind them.
    pub layers: Vec<Layer>,
    /// Of all points that are known; `None` if there is none.
    pub bounds: Option<Bounds>,
}

/// Something that is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Entity {
    /// `LINE`, `CIRCLE`, …
    pub kind: String,
    /// The layer that it is on.
    pub layer: String,
    /// Where it is; [`Shape::Other`] where nothing but its kind is known.
    pub shape: Shape,
}

/// Where an entity is. In units of the drawing, angles in degrees.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// From one point to another.
    Line {
        /// From
        start: Point,
        /// to.
        end: Point,
    },
    /// A point.
    Point {
        /// Where.
        at: Point,
    },
    /// A circle.
    Circle {
        /// Its middle.
        center: Point,
        /// Its radius.
        radius: f64,
    },
    /// Part of a circle, counterclockwise.
    Arc {
        /// Its middle.
        center: Point,
        /// Its radius.
        radius: f64,
        /// From
        start_angle: f64,
        /// to.
        end_angle: f64,
    },
    /// Lines through points.
    Polyline {
        /// The points.
        points: Vec<Point>,
        /// Whether the last one meets the first.
        is_closed: bool,
    },
    /// A text.
    Text {
        /// Where.
        at: Point,
        /// What it says.
        text: String,
        /// How high its letters are.
        height: f64,
    },
    /// A block, put somewhere.
    Insert {
        /// Where.
        at: Point,
        /// Which.
        block: String,
    },
    /// Anything else.
    Other,
}

/// A point of the plane.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// To the right.
    pub x: f64,
    /// Upwards.
    pub y: f64,
}

/// A layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// Its color in AutoCAD's index.
    pub color: i16,
    /// Whether it is shown.
    pub is_visible: bool,
}

/// What holds all points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The lowest x and y,
    pub min: Point,
    /// and the highest.
    pub max: Point,
}

/// Why nothing is known of a drawing. All of them the file's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrawingError {
    /// Closed formats.
    #[error("{0} is not read here: save the drawing as an ASCII DXF")]
    Format(&'static str),
    /// Not two lines a group, or not the numbers that must be there.
    #[error("the drawing is damaged at line {0}")]
    Damaged(usize),
    /// It ends before its end.
    #[error("the drawing ends too early")]
    Cut,
    /// Too much.
    #[error("the drawing has more than {0}")]
    TooLarge(&'static str),
    /// The machine is too busy for it.
    #[error("the drawing was not read in time")]
    Late,
}

/// Reads a drawing in at most two seconds. Blocks: for a thread of its own.
pub fn parse(bytes: &[u8]) -> Result<Drawing, DrawingError> {
    if bytes.len() > BYTES_MAX {
        return Err(DrawingError::TooLarge("10 MiB"));
    }
    if bytes.starts_with(b"AutoCAD Binary DXF") {
        return Err(DrawingError::Format("binary DXF"));
    }
    if bytes.starts_with(b"AC10") {
        return Err(DrawingError::Format("DWG"));
    }
    let mut reader = Reader::new(bytes);
    let mut drawing = Drawing::default();
    let mut section = Vec::new();
    while let Some(group) = reader.next()? {
        match (group.code, group.value) {
            (0, b"EOF") => return Ok(finished(drawing)),
            (0, b"SECTION") => section.clear(),
            (2, name) if section.is_empty() => section = name.to_vec(),
            (9, b"$DWGCODEPAGE") if section == b"HEADER" => reader.read_code_page()?,
            (0, b"LAYER") if section == b"TABLES" => {
                let layer = read_layer(&mut reader)?;
                if drawing.layers.len() >= LAYERS_MAX {
                    return Err(DrawingError::TooLarge("10000 layers"));
                }
                drawing.layers.push(layer);
            }
            (0, kind) if section == b"ENTITIES" && kind != b"ENDSEC" => {
                if drawing.entities.len() >= ENTITIES_MAX {
                    return Err(DrawingError::TooLarge("100000 entities"));
                }
                let kind = reader.decoded(kind);
                drawing.entities.push(read_entity(&mut reader, kind)?);
            }
            _ => {}
        }
    }
    Err(DrawingError::Cut)
}

/// A code and its value, without the blanks around them.
#[derive(Clone, Copy)]
struct Group<'a> {
    code: i32,
    value: &'a [u8],
}

struct Reader<'a> {
    rest: &'a [u8],
    line: usize,
    ahead: Option<Group<'a>>,
    encoding: &'static Encoding,
    num_points: usize,
    late: Instant,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let rest = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let late = Instant::now() + PATIENCE;
        let encoding = encoding_rs::UTF_8;
        Reader { rest, line: 0, ahead: None, encoding, num_points: 0, late }
    }

    /// The next group; `None` at the end of the bytes.
    fn next(&mut self) -> Result<Option<Group<'a>>, DrawingError> {
        if let Some(group) = self.ahead.take() {
            return Ok(Some(group));
        }
        loop {
            let Some(code) = self.next_line() else { return Ok(None) };
            if code.is_empty() && self.rest.trim_ascii().is_empty() {
                return Ok(None);
            }
            let code = std::str::from_utf8(code).ok().and_then(|code| code.parse().ok());
            let code = code.ok_or(DrawingError::Damaged(self.line))?;
            let value = self.next_line().ok_or(DrawingError::Cut)?;
            if self.line.is_multiple_of(1 << 16) && Instant::now() > self.late {
                return Err(DrawingError::Late);
            }
            if code != COMMENT {
                return Ok(Some(Group { code, value }));
            }
        }
    }

    fn next_line(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        self.line += 1;
        let end = self.rest.iter().position(|byte| *byte == b'\n').unwrap_or(self.rest.len());
        let line = &self.rest[..end];
        self.rest = self.rest.get(end + 1..).unwrap_or_default();
        Some(line.trim_ascii())
    }

    /// The next group of the same record: everything up to the next code 0.
    fn next_of_record(&mut self) -> Result<Option<Group<'a>>, DrawingError> {
        let group = self.next()?.ok_or(DrawingError::Cut)?;
        if group.code == 0 {
            self.ahead = Some(group);
            return Ok(None);
        }
        Ok(Some(group))
    }

    /// Drawings before 2007 name the code page of their texts.
    fn read_code_page(&mut self) -> Result<(), DrawingError> {
        let Some(group) = self.next_of_record()? else { return Ok(()) };
        let name = String::from_utf8_lossy(group.value).to_ascii_lowercase();
        let label = match name.trim_start_matches("ansi_") {
            "936" => "gbk",
            "932" => "shift_jis",
            "949" => "euc-kr",
            "950" => "big5",
            "874" => "windows-874",
            page if page.starts_with("125") => &format!("windows-{page}"),
            _ => return Ok(()),
        };
        if let Some(encoding) = Encoding::for_label(label.as_bytes()) {
            self.encoding = encoding;
        }
        Ok(())
    }

    /// A text, in UTF-8 if it can be that, else in the drawing's code page.
    fn decoded(&self, value: &[u8]) -> String {
        let value = &value[..value.len().min(TEXT_BYTES_MAX)];
        let text = match std::str::from_utf8(value) {
            Ok(text) => text.into(),
            Err(_) => self.encoding.decode_without_bom_handling(value).0,
        };
        text.chars().filter(|c| !c.is_control()).collect()
    }

    fn number(&self, value: &[u8]) -> Result<f64, DrawingError> {
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<f64>().ok());
        number.filter(|number| number.is_finite()).ok_or(DrawingError::Damaged(self.line))
    }

    fn counted(&mut self) -> Result<(), DrawingError> {
        self.num_points += 1;
        match self.num_points > POINTS_MAX {
            true => Err(DrawingError::TooLarge("1000000 points")),
            false => Ok(()),
        }
    }
}

fn read_layer(reader: &mut Reader<'_>) -> Result<Layer, DrawingError> {
    let mut layer = Layer { name: String::new(), color: 7, is_visible: true };
    let mut is_frozen = false;
    while let Some(group) = reader.next_of_record()? {
        match group.code {
            2 => layer.name = reader.decoded(group.value),
            // A layer that is off has a negative color.
            62 => {
                let color = reader.number(group.value)? as i16;
                (layer.color, layer.is_visible) = (color.saturating_abs(), color >= 0);
            }
            70 => is_frozen = reader.number(group.value)? as i64 & 1 == 1,
            _ => {}
        }
    }
    layer.is_visible &= !is_frozen;
    Ok(layer)
}

/// What a record of an entity says, before its kind says what that means.
#[derive(Default)]
struct Record {
    layer: Option<String>,
    /// Codes 10 and 20, once or many times,
    points: Vec<Point>,
    /// and 11 and 21.
    second: Option<Point>,
    /// Code 40.
    size: f64,
    angles: [f64; 2],
    flags: i64,
    text: String,
    name: String,
}

fn read_entity(reader: &mut Reader<'_>, kind: String) -> Result<Entity, DrawingError> {
    let mut record = read_record(reader)?;
    let shape = match kind.as_str() {
        "LINE" => Shape::Line { start: record.first(), end: record.second.unwrap_or_default() },
        "POINT" => Shape::Point { at: record.first() },
        "CIRCLE" => Shape::Circle { center: record.first(), radius: record.size },
        "ARC" => {
            let [start_angle, end_angle] = record.angles;
            Shape::Arc { center: record.first(), radius: record.size, start_angle, end_angle }
        }
        "LWPOLYLINE" => {
            let is_closed = record.flags & 1 == 1;
            Shape::Polyline { points: std::mem::take(&mut record.points), is_closed }
        }
        "POLYLINE" => {
            Shape::Polyline { points: read_vertices(reader)?, is_closed: record.flags & 1 == 1 }
        }
        "TEXT" | "MTEXT" => {
            let text = std::mem::take(&mut record.text);
            Shape::Text { at: record.first(), text, height: record.size }
        }
        "INSERT" => Shape::Insert { at: record.first(), block: std::mem::take(&mut record.name) },
        _ => Shape::Other,
    };
    let layer = record.layer.unwrap_or_else(|| "0".into());
    Ok(Entity { kind, layer, shape })
}

impl Record {
    fn first(&self) -> Point {
        self.points.first().copied().unwrap_or_default()
    }
}

fn read_record(reader: &mut Reader<'_>) -> Result<Record, DrawingError> {
    let mut record = Record::default();
    while let Some(Group { code, value }) = reader.next_of_record()? {
        match code {
            8 => record.layer = Some(reader.decoded(value)),
            1 => record.text = reader.decoded(value),
            2 => record.name = reader.decoded(value),
            10 => {
                reader.counted()?;
                record.points.push(Point { x: reader.number(value)?, y: 0.0 });
            }
            20 => {
                let y = reader.number(value)?;
                if let Some(point) = record.points.last_mut() {
                    point.y = y;
                }
            }
            11 => record.second.get_or_insert_default().x = reader.number(value)?,
            21 => record.second.get_or_insert_default().y = reader.number(value)?,
            40 => record.size = reader.number(value)?,
            50 => record.angles[0] = reader.number(value)?,
            51 => record.angles[1] = reader.number(value)?,
            70 => record.flags = reader.number(value)? as i64,
            _ => {}
        }
    }
    Ok(record)
}

/// The points of an old polyline are records of their own, up to `SEQEND`.
fn read_vertices(reader: &mut Reader<'_>) -> Result<Vec<Point>, DrawingError> {
    let mut points = Vec::new();
    loop {
        let group = reader.next()?.ok_or(DrawingError::Cut)?;
        match group.value {
            b"VERTEX" => points.push(read_record(reader)?.first()),
            b"SEQEND" => {
                read_record(reader)?;
                return Ok(points);
            }
            // Somebody forgot the end.
            _ => {
                reader.ahead = Some(group);
                return Ok(points);
            }
        }
    }
}

/// Adds what follows from the whole.
fn finished(mut drawing: Drawing) -> Drawing {
    let mut known: HashSet<String> =
        drawing.layers.iter().map(|layer| layer.name.clone()).collect();
    let mut bounds = None;
    for entity in &drawing.entities {
        if known.insert(entity.layer.clone()) {
            let name = entity.layer.clone();
            drawing.layers.push(Layer { name, color: 7, is_visible: true });
        }
        match &entity.shape {
            Shape::Line { start, end } => {
                widen(&mut bounds, *start, 0.0);
                widen(&mut bounds, *end, 0.0);
            }
            Shape::Circle { center, radius } | Shape::Arc { center, radius, .. } => {
                widen(&mut bounds, *center, radius.abs());
            }
            Shape::Polyline { points, .. } => {
                points.iter().for_each(|point| widen(&mut bounds, *point, 0.0));
            }
            Shape::Point { at } | Shape::Text { at, .. } | Shape::Insert { at, .. } => {
                widen(&mut bounds, *at, 0.0);
            }
            Shape::Other => {}
        }
    }
    drawing.bounds = bounds;
    drawing
}

/// Of an arc the whole circle counts: what holds it holds the arc.
fn widen(bounds: &mut Option<Bounds>, point: Point, by: f64) {
    let (min, max) =
        (Point { x: point.x - by, y: point.y - by }, Point { x: point.x + by, y: point.y + by });
    let known = bounds.get_or_insert(Bounds { min, max });
    known.min = Point { x: known.min.x.min(min.x), y: known.min.y.min(min.y) };
    known.max = Point { x: known.max.x.max(max.x), y: known.max.y.max(max.y) };
}

const COMMENT: i32 = 999;

const BYTES_MAX: usize = 10 << 20;

const ENTITIES_MAX: usize = 100_000;

const LAYERS_MAX: usize = 10_000;

const POINTS_MAX: usize = 1_000_000;

/// Bytes of one text.
const TEXT_BYTES_MAX: usize = 2048;

/// Ten megabytes take a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;

//! Values as Rust types and back, through serde.
//!
//! | Nix | Rust |
//! |---|---|
//! | `null` | `()`, `None` |
//! | Boolean, integer, float | `bool`, any integer that it fits, `f32` and `f64` |
//! | string | `String`, `char`, a unit variant of an enum |
//! | path | `String`, `PathBuf`: the path as it is, nothing is copied to the store |
//! | list | `Vec`, tuples |
//! | set | structs, maps; with one attribute also an enum's variant with contents |
//! | set with `__toString` or `outPath` (a derivation) | structs and maps; else what that gives, as in `builtins.toJSON` |
//!
//! A function has no Rust type. What refers to the store does so in a string's context, which a `String` does not have:
//! [`ContextString`] keeps it.

use crate::context::{Context, Derived, Element};
use crate::error::{Error, Result};
use crate::eval::{Coerce, Evaluator};
use crate::symbol::{Symbol, sym};
use crate::value::{Attrs, Kind, Pos, Value};
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};
use serde::{Deserialize, Serialize, forward_to_deserialize_any, ser};
use std::rc::Rc;

/// A string with its context: what it refers to in the store, and so what must be there before the string is of use.
///
/// ```
/// use bento_eval::{ContextString, NoHost, Settings, evaluate};
///
/// let code = br#"derivation { name = "greeting"; system = "x86_64-linux"; builder = "/bin/sh"; }"#;
/// let out_path = evaluate(Settings::default(), NoHost, |evaluator| {
///     let derivation = evaluator.eval_string(code, b"/")?;
///     evaluator.deserialize::<ContextString>(derivation)
/// })?
/// .expect("the derivation has an output");
///
/// assert_eq!(out_path.text, "/nix/store/kp0sc2igr6x6f3fb7r5bql92f54qkjai-greeting");
/// assert_eq!(out_path.context, ["/nix/store/6c2xmil36rjmqv2jd9nbgck4v2zb1zyq-greeting.drv^out"]);
/// # Ok::<(), bento_eval::Aborted>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename = "bento_eval::ContextString")]
pub struct ContextString {
    /// The string.
    pub text: String,
    /// What it refers to: store paths; `DRV^OUTPUT` for an output of a derivation; `=DRV` for a derivation with everything
    /// that it is built from.
    pub context: Vec<String>,
}

/// The name under which serde knows [`ContextString`].
const CONTEXT_STRING: &str = "bento_eval::ContextString";

impl<'a> Evaluator<'a> {
    /// What a value is as a Rust type. Only that is evaluated which the type asks for: attributes that it does not have are
    /// not looked at. The [module](crate::typed) says what becomes what.
    ///
    /// ```
    /// use bento_eval::{NoHost, Settings, evaluate};
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Server {
    ///     name: String,
    ///     ports: Vec<u16>,
    ///     comment: Option<String>,
    /// }
    ///
    /// let code = br#"{ name = "web" + toString 1; ports = [ 80 443 ]; secret = throw "not asked for"; }"#;
    /// let server = evaluate(Settings::default(), NoHost, |evaluator| {
    ///     evaluator.deserialize::<Server>(evaluator.eval_string(code, b"/")?)
    /// })?
    /// .expect("it is a server");
    ///
    /// assert_eq!((server.name.as_str(), server.ports), ("web1", vec![80, 443]));
    /// assert_eq!(server.comment, None);
    /// # Ok::<(), bento_eval::Aborted>(())
    /// ```
    ///
    /// # Errors
    /// What evaluating it gives, and when it is none of that type; the trace says where in the value.
    pub fn deserialize<T: DeserializeOwned>(&self, value: Value<'a>) -> Result<T> {
        T::deserialize(ValueDeserializer { evaluator: self, value }).map_err(|failure| failure.0)
    }

    /// The value that something in Rust is. The [module](crate::typed) says what becomes what.
    ///
    /// ```
    /// use bento_eval::value::Pos;
    /// use bento_eval::{NoHost, Settings, evaluate};
    ///
    /// let greeting = evaluate(Settings::default(), NoHost, |evaluator| {
    ///     let function = evaluator.eval_string(b"{ name, times }: toString (builtins.genList (_: name) times)", b"/")?;
    ///     let argument = evaluator.serialize(&serde_json::json!({ "name": "hey", "times": 3 }))?;
    ///     evaluator.deserialize::<String>(evaluator.call(function, &[argument], Pos::NONE)?)
    /// })?;
    ///
    /// assert_eq!(greeting.expect("it evaluates"), "hey hey hey");
    /// # Ok::<(), bento_eval::Aborted>(())
    /// ```
    ///
    /// # Errors
    /// When it has no form in Nix: an integer of more than 64 bits, a string with a zero byte, a map with keys that are no
    /// strings.
    pub fn serialize<T: Serialize + ?Sized>(&self, value: &T) -> Result<Value<'a>> {
        value.serialize(ValueSerializer { evaluator: self }).map_err(|failure| failure.0)
    }

    /// A context's elements as [`ContextString`] has them.
    fn context_texts(&self, context: Context) -> Vec<String> {
        let elements = self.contexts.elements(context);
        let text = |element: &Element| match element {
            Element::DrvDeep(path) => format!("={}/{path}", self.store.as_str()),
            element => self.show_context_element(element),
        };
        elements.iter().map(text).collect()
    }

    /// The other way round.
    fn context_of_texts(&self, texts: &[String]) -> Result<Context> {
        let elements = texts.iter().map(|text| {
            let (is_deep, path) = text.strip_prefix('=').map_or((false, text.as_str()), |path| (true, path));
            let mut parts = path.split('^');
            let path = self.store.parse(parts.next().unwrap_or_default().as_bytes());
            let path = path.map_err(|error| Error::eval(Pos::NONE, format!("context element '{text}': {error}")))?;
            let base: Rc<str> = Rc::from(path.as_str());
            let outputs: Vec<Rc<str>> = parts.map(Rc::from).collect();
            Ok(match outputs.split_last() {
                None if is_deep => Element::DrvDeep(base),
                None => Element::Opaque(base),
                Some((output, through)) => {
                    let drv = through
                        .iter()
                        .fold(Derived::Path(base), |drv, output| Derived::Output(Rc::new(drv), output.clone()));
                    Element::Built { drv, output: output.clone() }
                }
            })
        });
        Ok(self.contexts.of(elements.collect::<Result<Vec<_>>>()?))
    }
}

/// An error on its way through serde.
#[derive(Debug)]
struct Failure(Box<Error>);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failure {}

impl From<Box<Error>> for Failure {
    fn from(error: Box<Error>) -> Self {
        Failure(error)
    }
}

impl de::Error for Failure {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Failure(Error::eval(Pos::NONE, message.to_string()))
    }
}

impl ser::Error for Failure {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        de::Error::custom(message)
    }
}

type Done<T> = std::result::Result<T, Failure>;

impl Failure {
    fn while_reading(self, pos: Pos, what: String) -> Self {
        Failure(self.0.traced(pos, what))
    }
}

// ---- from Nix -------------------------------------------------------------------------------------------------------

struct ValueDeserializer<'e, 'a> {
    evaluator: &'e Evaluator<'a>,
    value: Value<'a>,
}

impl<'a> ValueDeserializer<'_, 'a> {
    fn force(&self) -> Done<Value<'a>> {
        Ok(self.evaluator.force(self.value)?)
    }

    /// Runs `body` one level deeper.
    fn nested<T>(evaluator: &Evaluator<'a>, body: impl FnOnce() -> Done<T>) -> Done<T> {
        evaluator.nested(Pos::NONE, || body().map_err(|failure| failure.0)).map_err(Failure)
    }

    /// The text of what is a string or stands for one, and its context.
    fn text(&self) -> Done<(String, Context)> {
        let what = "while converting a value to a string";
        let (bytes, context) = self.evaluator.to_string(self.value, Coerce::PLAIN, Pos::NONE, what)?;
        Ok((utf8(bytes)?, context))
    }
}

fn utf8(bytes: Vec<u8>) -> Done<String> {
    String::from_utf8(bytes).map_err(|error| {
        de::Error::custom(format!("the string '{}' is not UTF-8", String::from_utf8_lossy(error.as_bytes())))
    })
}

impl<'de> de::Deserializer<'de> for ValueDeserializer<'_, '_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Done<V::Value> {
        let evaluator = self.evaluator;
        let value = self.force()?;
        match value.kind() {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(truth) => visitor.visit_bool(truth),
            Kind::Int(number) => visitor.visit_i64(number),
            Kind::Float(number) => visitor.visit_f64(number),
            Kind::Str(text) | Kind::Path(text) => visitor.visit_string(utf8(text.bytes().to_vec())?),
            Kind::List(list) => {
                let elements = list.iter().collect::<Vec<_>>().into_iter();
                Self::nested(evaluator, || visitor.visit_seq(Elements { evaluator, elements, index: 0 }))
            }
            Kind::Attrs(attrs) if attrs.get(sym::TO_STRING).or(attrs.get(sym::OUT_PATH)).is_some() => {
                Self::nested(evaluator, || visitor.visit_string(self.text()?.0))
            }
            Kind::Attrs(_) => self.deserialize_map(visitor),
            Kind::Thunk(_) | Kind::Lambda(_) | Kind::PrimOp(_) | Kind::PrimOpApp(_) => {
                Err(de::Error::custom(format!("{} can't be converted", evaluator.type_of(value))))
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Done<V::Value> {
        match self.force()?.kind() {
            Kind::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Done<V::Value> {
        let evaluator = self.evaluator;
        match self.force()?.kind() {
            Kind::Attrs(attrs) => Self::nested(evaluator, || visitor.visit_map(Attributes::new(evaluator, attrs))),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Done<V::Value> {
        match self.force()?.kind() {
            Kind::Str(text) | Kind::Path(text) => visitor.visit_bytes(text.bytes()),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Done<V::Value> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Done<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Done<V::Value> {
        if name != CONTEXT_STRING {
            return self.deserialize_map(visitor);
        }
        let (text, context) = self.text()?;
        let context = self.evaluator.context_texts(context);
        visitor.visit_seq(de::value::SeqDeserializer::new(
            [TextOrTexts::Text(text), TextOrTexts::Texts(context)].into_iter(),
        ))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Done<V::Value> {
        let evaluator = self.evaluator;
        let value = self.force()?;
        match value.kind() {
            Kind::Str(text) => visitor.visit_enum(utf8(text.bytes().to_vec())?.into_deserializer()),
            Kind::Attrs(attrs) => {
                let mut entries = evaluator.lexicographic(attrs).into_iter();
                let (Some((name, _, slot)), None) = (entries.next(), entries.next()) else {
                    let message = "a set that stands for a variant must have one attribute, which is named after it";
                    return Err(de::Error::custom(message));
                };
                let variant = Variant { evaluator, name, value: slot.get() };
                Self::nested(evaluator, || visitor.visit_enum(variant))
            }
            _ => {
                let message = format!("expected a string or a set but found {}", evaluator.type_of(value));
                Err(de::Error::custom(message))
            }
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Done<V::Value> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char
        str string unit unit_struct seq tuple tuple_struct identifier
    }
}

/// The fields of a [`ContextString`].
enum TextOrTexts {
    Text(String),
    Texts(Vec<String>),
}

impl<'de> IntoDeserializer<'de, Failure> for TextOrTexts {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> de::Deserializer<'de> for TextOrTexts {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Done<V::Value> {
        match self {
            TextOrTexts::Text(text) => visitor.visit_string(text),
            TextOrTexts::Texts(texts) => visitor.visit_seq(de::value::SeqDeserializer::new(texts.into_iter())),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Elements<'e, 'a> {
    evaluator: &'e Evaluator<'a>,
    elements: std::vec::IntoIter<Value<'a>>,
    index: usize,
}

impl<'de> de::SeqAccess<'de> for Elements<'_, '_> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Done<Option<T::Value>> {
        let Some(value) = self.elements.next() else { return Ok(None) };
        let index = self.index;
        self.index += 1;
        let read = seed.deserialize(ValueDeserializer { evaluator: self.evaluator, value });
        read.map(Some).map_err(|failure| {
            failure.while_reading(Pos::NONE, format!("while converting the list element at index {index}"))
        })
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.elements.len())
    }
}

struct Attributes<'e, 'a> {
    evaluator: &'e Evaluator<'a>,
    entries: std::vec::IntoIter<(Symbol, Pos, Value<'a>)>,
    /// The attribute whose name was read last.
    current: Option<(Symbol, Pos, Value<'a>)>,
}

impl<'e, 'a> Attributes<'e, 'a> {
    fn new(evaluator: &'e Evaluator<'a>, attrs: Attrs<'a>) -> Self {
        let entries = evaluator.lexicographic(attrs);
        let entries: Vec<_> = entries.into_iter().map(|(name, pos, slot)| (name, pos, slot.get())).collect();
        Attributes { evaluator, entries: entries.into_iter(), current: None }
    }
}

impl<'de> de::MapAccess<'de> for Attributes<'_, '_> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Done<Option<K::Value>> {
        self.current = self.entries.next();
        let Some((name, ..)) = self.current else { return Ok(None) };
        let name = utf8(self.evaluator.symbols.text(name).to_vec())?;
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Done<V::Value> {
        let Some((name, pos, value)) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its name"));
        };
        let evaluator = self.evaluator;
        seed.deserialize(ValueDeserializer { evaluator, value }).map_err(|failure| {
            failure.while_reading(pos, format!("while converting the attribute '{}'", evaluator.name(name)))
        })
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

/// A variant of an enum: the set's only attribute.
struct Variant<'e, 'a> {
    evaluator: &'e Evaluator<'a>,
    name: Symbol,
    value: Value<'a>,
}

impl<'de, 'e, 'a> de::EnumAccess<'de> for Variant<'e, 'a> {
    type Error = Failure;
    type Variant = ValueDeserializer<'e, 'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Done<(V::Value, Self::Variant)> {
        let name = utf8(self.evaluator.symbols.text(self.name).to_vec())?;
        let name: de::value::StringDeserializer<Failure> = name.into_deserializer();
        let variant = seed.deserialize(name)?;
        Ok((variant, ValueDeserializer { evaluator: self.evaluator, value: self.value }))
    }
}

impl<'de> de::VariantAccess<'de> for ValueDeserializer<'_, '_> {
    type Error = Failure;

    fn unit_variant(self) -> Done<()> {
        de::Deserialize::deserialize(self)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Done<T::Value> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Done<V::Value> {
        de::Deserializer::deserialize_any(self, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Done<V::Value> {
        de::Deserializer::deserialize_map(self, visitor)
    }
}

// ---- to Nix ---------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy)]
struct ValueSerializer<'e, 'a> {
    evaluator: &'e Evaluator<'a>,
}

impl<'e, 'a> ValueSerializer<'e, 'a> {
    fn string(self, bytes: &[u8]) -> Done<Value<'a>> {
        if bytes.contains(&0) {
            let text = String::from_utf8_lossy(bytes).replace('\0', "␀");
            return Err(ser::Error::custom(format!(
                "the string '{text}' has a zero byte, which no Nix string can have"
            )));
        }
        Ok(self.evaluator.heap.string(bytes))
    }

    /// `{ variant = value; }`
    fn variant(self, variant: &str, value: Value<'a>) -> Value<'a> {
        let name = self.evaluator.symbols.intern(variant.as_bytes());
        self.evaluator.heap.attrs(&mut vec![(name, Pos::NONE, value)]).into()
    }

    fn elements(self, variant: Option<&'static str>, len: Option<usize>) -> ElementsSerializer<'e, 'a> {
        ElementsSerializer { to: self, variant, values: Vec::with_capacity(len.unwrap_or_default()) }
    }

    fn attributes(self, variant: Option<&'static str>) -> AttributesSerializer<'e, 'a> {
        AttributesSerializer { to: self, variant, is_context_string: false, name: None, entries: Vec::new() }
    }
}

fn too_large(number: impl std::fmt::Display) -> Failure {
    ser::Error::custom(format!("the integer {number} does not fit 64 bits"))
}

impl<'e, 'a> ser::Serializer for ValueSerializer<'e, 'a> {
    type Ok = Value<'a>;
    type Error = Failure;
    type SerializeSeq = ElementsSerializer<'e, 'a>;
    type SerializeTuple = ElementsSerializer<'e, 'a>;
    type SerializeTupleStruct = ElementsSerializer<'e, 'a>;
    type SerializeTupleVariant = ElementsSerializer<'e, 'a>;
    type SerializeMap = AttributesSerializer<'e, 'a>;
    type SerializeStruct = AttributesSerializer<'e, 'a>;
    type SerializeStructVariant = AttributesSerializer<'e, 'a>;

    fn serialize_bool(self, value: bool) -> Done<Value<'a>> {
        Ok(Value::bool(value))
    }
    fn serialize_i8(self, value: i8) -> Done<Value<'a>> {
        self.serialize_i64(value.into())
    }
    fn serialize_i16(self, value: i16) -> Done<Value<'a>> {
        self.serialize_i64(value.into())
    }
    fn serialize_i32(self, value: i32) -> Done<Value<'a>> {
        self.serialize_i64(value.into())
    }
    fn serialize_i64(self, value: i64) -> Done<Value<'a>> {
        Ok(self.evaluator.heap.int(value))
    }
    fn serialize_i128(self, value: i128) -> Done<Value<'a>> {
        self.serialize_i64(value.try_into().map_err(|_| too_large(value))?)
    }
    fn serialize_u8(self, value: u8) -> Done<Value<'a>> {
        self.serialize_i64(value.into())
    }
    fn serialize_u16(self, value: u16) -> Done<Value<'a>> {
        self.serialize_i64(value.into())
    }
    fn serialize_u32(self, value: u32) -> Done<Value<'a>> {
        self.serialize_i64(value.into())
    }
    fn serialize_u64(self, value: u64) -> Done<Value<'a>> {
        self.serialize_i64(value.try_into().map_err(|_| too_large(value))?)
    }
    fn serialize_u128(self, value: u128) -> Done<Value<'a>> {
        self.serialize_i64(value.try_into().map_err(|_| too_large(value))?)
    }
    fn serialize_f32(self, value: f32) -> Done<Value<'a>> {
        self.serialize_f64(value.into())
    }
    fn serialize_f64(self, value: f64) -> Done<Value<'a>> {
        Ok(self.evaluator.heap.float(value))
    }
    fn serialize_char(self, value: char) -> Done<Value<'a>> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }
    fn serialize_str(self, value: &str) -> Done<Value<'a>> {
        self.string(value.as_bytes())
    }
    fn serialize_bytes(self, value: &[u8]) -> Done<Value<'a>> {
        self.string(value)
    }
    fn serialize_none(self) -> Done<Value<'a>> {
        Ok(Value::NULL)
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Done<Value<'a>> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Done<Value<'a>> {
        Ok(Value::NULL)
    }
    fn serialize_unit_struct(self, _: &'static str) -> Done<Value<'a>> {
        Ok(Value::NULL)
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Done<Value<'a>> {
        self.serialize_str(variant)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Done<Value<'a>> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Done<Value<'a>> {
        Ok(self.variant(variant, value.serialize(self)?))
    }
    fn serialize_seq(self, len: Option<usize>) -> Done<Self::SerializeSeq> {
        Ok(self.elements(None, len))
    }
    fn serialize_tuple(self, len: usize) -> Done<Self::SerializeTuple> {
        Ok(self.elements(None, Some(len)))
    }
    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Done<Self::SerializeTupleStruct> {
        Ok(self.elements(None, Some(len)))
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> Done<Self::SerializeTupleVariant> {
        Ok(self.elements(Some(variant), Some(len)))
    }
    fn serialize_map(self, _: Option<usize>) -> Done<Self::SerializeMap> {
        Ok(self.attributes(None))
    }
    fn serialize_struct(self, name: &'static str, _: usize) -> Done<Self::SerializeStruct> {
        Ok(AttributesSerializer { is_context_string: name == CONTEXT_STRING, ..self.attributes(None) })
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Done<Self::SerializeStructVariant> {
        Ok(self.attributes(Some(variant)))
    }
}

/// Makes a list.
struct ElementsSerializer<'e, 'a> {
    to: ValueSerializer<'e, 'a>,
    variant: Option<&'static str>,
    values: Vec<Value<'a>>,
}

impl<'a> ElementsSerializer<'_, 'a> {
    fn push<T: Serialize + ?Sized>(&mut self, value: &T) -> Done<()> {
        self.values.push(value.serialize(self.to)?);
        Ok(())
    }

    fn finish(self) -> Done<Value<'a>> {
        let list = self.to.evaluator.heap.list(&self.values).into();
        Ok(self.variant.map_or(list, |variant| self.to.variant(variant, list)))
    }
}

impl<'a> ser::SerializeSeq for ElementsSerializer<'_, 'a> {
    type Ok = Value<'a>;
    type Error = Failure;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Done<()> {
        self.push(value)
    }
    fn end(self) -> Done<Value<'a>> {
        self.finish()
    }
}

impl<'a> ser::SerializeTuple for ElementsSerializer<'_, 'a> {
    type Ok = Value<'a>;
    type Error = Failure;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Done<()> {
        self.push(value)
    }
    fn end(self) -> Done<Value<'a>> {
        self.finish()
    }
}

impl<'a> ser::SerializeTupleStruct for ElementsSerializer<'_, 'a> {
    type Ok = Value<'a>;
    type Error = Failure;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Done<()> {
        self.push(value)
    }
    fn end(self) -> Done<Value<'a>> {
        self.finish()
    }
}

impl<'a> ser::SerializeTupleVariant for ElementsSerializer<'_, 'a> {
    type Ok = Value<'a>;
    type Error = Failure;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Done<()> {
        self.push(value)
    }
    fn end(self) -> Done<Value<'a>> {
        self.finish()
    }
}

/// Makes a set.
struct AttributesSerializer<'e, 'a> {
    to: ValueSerializer<'e, 'a>,
    variant: Option<&'static str>,
    is_context_string: bool,
    /// The name whose value comes next.
    name: Option<Symbol>,
    entries: Vec<(Symbol, Pos, Value<'a>)>,
}

impl<'a> AttributesSerializer<'_, 'a> {
    fn push<T: Serialize + ?Sized>(&mut self, name: Symbol, value: &T) -> Done<()> {
        self.entries.push((name, Pos::NONE, value.serialize(self.to)?));
        Ok(())
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Done<()> {
        let name = self.to.evaluator.symbols.intern(name.as_bytes());
        self.push(name, value)
    }

    fn finish(mut self) -> Done<Value<'a>> {
        let evaluator = self.to.evaluator;
        let set = evaluator.heap.attrs(&mut self.entries).into();
        if !self.is_context_string {
            return Ok(self.variant.map_or(set, |variant| self.to.variant(variant, set)));
        }
        // Its fields, which have become a set by now.
        #[derive(Deserialize)]
        struct Fields {
            text: String,
            context: Vec<String>,
        }
        let fields: Fields = evaluator.deserialize(set)?;
        let context = evaluator.context_of_texts(&fields.context)?;
        Ok(evaluator.heap.string_with_context(fields.text.as_bytes(), context))
    }
}

impl<'a> ser::SerializeMap for AttributesSerializer<'_, 'a> {
    type Ok = Value<'a>;
    type Error = Failure;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Done<()> {
        let key = key.serialize(self.to)?;
        let Kind::Str(name) = key.kind() else {
            let message = format!("an attribute's name must be a string, not {}", self.to.evaluator.type_of(key));
            return Err(ser::Error::custom(message));
        };
        self.name = Some(self.to.evaluator.symbols.intern(name.bytes()));
        Ok(())
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Done<()> {
        let name = self.name.take().ok_or_else(|| -> Failure { ser::Error::custom("a value came before its name") })?;
        self.push(name, value)
    }
    fn end(self) -> Done<Value<'a>> {
        self.finish()
    }
}

impl<'a> ser::SerializeStruct for AttributesSerializer<'_, 'a> {
    type Ok = Value<'a>;
    type Error = Failure;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Done<()> {
        self.field(name, value)
    }
    fn end(self) -> Done<Value<'a>> {
        self.finish()
    }
}

impl<'a> ser::SerializeStructVariant for AttributesSerializer<'_, 'a> {
    type Ok = Value<'a>;
    type Error = Failure;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Done<()> {
        self.field(name, value)
    }
    fn end(self) -> Done<Value<'a>> {
        self.finish()
    }
}

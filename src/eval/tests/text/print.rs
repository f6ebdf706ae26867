use bento_eval::text::escape::{XmlWriter, write_name, write_string, write_string_limited};

use crate::golden;
use crate::oracle::{Form, check};

fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn prints_strings_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| Ok(written(|out| write_string(out, arguments[0])));
    check("prints_strings_as_cpp_nix_does", golden::PRINT_STRING, Form::Printed, "@1", ours);
}

#[test]
fn prints_attribute_names_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| Ok(format!("{{ {} = 1; }}", written(|out| write_name(out, arguments[0]))));
    check("prints_attribute_names_as_cpp_nix_does", golden::PRINT_NAME, Form::Printed, "{ ${@1} = 1; }", ours);
}

#[test]
fn long_strings_are_cut_with_a_count() {
    assert_eq!(written(|out| write_string_limited(out, b"abc", 3)), "\"abc\"");
    assert_eq!(written(|out| write_string_limited(out, b"abcd", 3)), "\"abc\" «1 byte elided»");
    assert_eq!(written(|out| write_string_limited(out, b"a\n${}", 3)), "\"a\\n\\$\" «2 bytes elided»");
}

#[test]
fn writes_xml_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| {
        let document = written(|out| {
            let mut xml = XmlWriter::new(out);
            xml.open("expr", &[]);
            xml.empty("string", &[("value", arguments[0])]);
            xml.close();
        });
        Ok(serde_json::json!(document).to_string())
    };
    check("writes_xml_as_cpp_nix_does", golden::XML_STRING, Form::Json, "builtins.toXML @1", ours);
}

#[test]
fn xml_attributes_come_in_the_order_of_their_names_and_elements_are_indented() {
    let document = written(|out| {
        let mut xml = XmlWriter::new(out);
        xml.open("attr", &[("path", b"p"), ("name", b"n"), ("line", b"1")]);
        xml.open("list", &[]);
        xml.empty("null", &[]);
        xml.close();
        xml.close();
        xml.close();
    });
    let expected = "<?xml version='1.0' encoding='utf-8'?>\n<attr line=\"1\" name=\"n\" path=\"p\">\n  <list>\n    \
                    <null />\n  </list>\n</attr>\n";
    assert_eq!(document, expected);
}

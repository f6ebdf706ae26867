//! Hashes are computed, written and read as C++ Nix does.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::io::Write;

use bento_store::{
    base32::{self, Base32Error},
    hash::{Hash, HashAlgo, HashError, HashFormat, Hasher, compress_hash},
};

#[test]
fn hashes_are_those_of_nix_in_every_format() {
    let lines = include_str!("golden/hashes.tsv").lines();
    let mut count = 0;
    for line in lines {
        let [algo, input, base16, nix32, base64, sri] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let algo: HashAlgo = algo.parse().unwrap();
        let hash = Hash::digest(algo, input);
        let formats = [
            (HashFormat::Base16, base16),
            (HashFormat::Nix32, nix32),
            (HashFormat::Base64, base64),
            (HashFormat::Sri, sri),
        ];
        for (format, text) in formats {
            assert_eq!(hash.format(format, false), text);
            assert_eq!(Hash::parse_any_returning_format(text, Some(algo)), Ok((hash, format)));
            if format != HashFormat::Sri {
                let prefixed = format!("{algo}:{text}");
                assert_eq!(hash.format(format, true), prefixed);
                assert_eq!(Hash::parse_any_prefixed(&prefixed), Ok(hash));
                assert_eq!(Hash::parse_unprefixed(text, algo), Ok(hash));
            }
        }
        assert_eq!(Hash::parse_sri(sri), Ok(hash));
        assert_eq!(hash.to_string(), sri);

        let mut hasher = Hasher::new(algo);
        for piece in input.as_bytes().chunks(7) {
            hasher.write_all(piece).unwrap();
        }
        assert_eq!(hasher.finish(), (hash, input.len() as u64));
        count += 1;
    }
    assert_eq!(count, 15);
}

#[test]
fn texts_are_accepted_and_refused_as_nix_does() {
    for line in include_str!("golden/hash-texts.tsv").lines() {
        let [text, algo, expected] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let algo = (algo != "-").then(|| algo.parse().unwrap());
        let result = match Hash::parse_any(&text.replace("\\n", "\n"), algo) {
            Ok(hash) => hash.to_sri(),
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(result, expected, "{text}");
    }
}

#[test]
fn an_empty_hash_is_zeros_where_the_algorithm_is_known() {
    let zero = Hash::parse_allow_empty("", Some(HashAlgo::Sha256)).unwrap();
    assert_eq!(zero.to_sri(), "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    assert_eq!(Hash::parse_allow_empty("", None), Err(HashError::EmptyWithoutAlgo));
    assert!(Hash::parse_allow_empty("abc", Some(HashAlgo::Sha256)).is_err());
}

#[test]
fn names_are_those_of_nix() {
    for algo in HashAlgo::ALL {
        assert_eq!(algo.name().parse(), Ok(algo));
    }
    for format in [HashFormat::Base16, HashFormat::Nix32, HashFormat::Base64, HashFormat::Sri] {
        assert_eq!(format.name().parse(), Ok(format));
    }
    assert_eq!("base32".parse(), Ok(HashFormat::Nix32));
    assert_eq!(
        "hex".parse::<HashFormat>().unwrap_err().to_string(),
        "unknown hash format 'hex', expect 'base16', 'base32', 'base64', or 'sri'"
    );
}

#[test]
fn base32_refuses_what_it_would_not_write() {
    assert_eq!(base32::decode("e0"), Err(Base32Error::InvalidCharacter(b'e')));
    assert_eq!(base32::decode("1\u{e4}"), Err(Base32Error::InvalidLength(3)));
    assert_eq!(base32::decode("1"), Err(Base32Error::InvalidLength(1)));
    assert_eq!(base32::decode("80"), Err(Base32Error::SpareBits));
    assert_eq!(base32::decode("70"), Ok(vec![224]));
    assert_eq!(base32::decode(""), Ok(vec![]));
}

#[test]
fn folding_keeps_every_byte() {
    let digest: Vec<u8> = (0..64).collect();
    let folded = compress_hash(&digest);
    assert_eq!(folded[0], 20 ^ 40 ^ 60);
    assert_eq!(folded[19], 19 ^ 39 ^ 59);
}

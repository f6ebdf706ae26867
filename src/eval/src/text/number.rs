//! Numbers as text, in the four forms that the language has for floats.
//!
//! | form | where | rule |
//! |---|---|---|
//! | [`write_float`] | printing, XML, error messages | `%g`: six significant digits |
//! | [`float_to_string`] | `toString`, coercion | `%f`: six decimals |
//! | [`write_json_float`] | `toJSON`, `nix-instantiate --json` | nearly the shortest that reads back the same |
//! | [`parse_float`] | literals | `strtod`, with overflow and underflow as errors |

use std::io::Write;

/// Writes `value` as C++'s `ostream << double` does by default (`%g`).
pub fn write_float(out: &mut Vec<u8>, value: f64) {
    if !value.is_finite() || value == 0.0 {
        out.extend(non_finite(value).unwrap_or(if value.is_sign_negative() { b"-0" } else { b"0" }));
        return;
    }
    // One digit, the point, five more and the exponent: rounded once, to six significant digits.
    let scientific = format!("{:.5e}", value.abs());
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits: Vec<u8> = digits.bytes().filter(|b| *b != b'.').collect();
    let digits = trim_zeros(&digits);
    if value.is_sign_negative() {
        out.push(b'-');
    }
    if (-4..6).contains(&exponent) {
        write_positional(out, digits, exponent + 1);
    } else {
        write_exponential(out, digits, exponent);
    }
}

/// `value` as `std::to_string` gives it (`%f`): six decimals, however large.
pub fn float_to_string(value: f64) -> String {
    match non_finite(value) {
        Some(text) => String::from_utf8_lossy(text).into_owned(),
        None => format!("{value:.6}"),
    }
}

fn non_finite(value: f64) -> Option<&'static [u8]> {
    match (value.is_nan(), value.is_infinite(), value.is_sign_negative()) {
        (true, _, false) => Some(b"nan"),
        (true, _, true) => Some(b"-nan"),
        (_, true, false) => Some(b"inf"),
        (_, true, true) => Some(b"-inf"),
        _ => None,
    }
}

/// Without trailing `0`, but never empty.
fn trim_zeros(digits: &[u8]) -> &[u8] {
    let end = digits.iter().rposition(|b| *b != b'0').map_or(1, |last| last + 1);
    &digits[..end.min(digits.len())]
}

/// Writes `0.digits` times ten to the power of `point`, without an exponent and without a point where none is needed.
fn write_positional(out: &mut Vec<u8>, digits: &[u8], point: i32) {
    let places = point.unsigned_abs() as usize;
    if point <= 0 {
        out.extend(b"0.");
        out.resize(out.len() + places, b'0');
        out.extend(digits);
    } else if digits.len() <= places {
        out.extend(digits);
        out.resize(out.len() + places - digits.len(), b'0');
    } else {
        out.extend(&digits[..places]);
        out.push(b'.');
        out.extend(&digits[places..]);
    }
}

/// Writes `d.igits` and an exponent of at least two digits.
fn write_exponential(out: &mut Vec<u8>, digits: &[u8], exponent: i32) {
    out.extend(&digits[..1]);
    if digits.len() > 1 {
        out.push(b'.');
        out.extend(&digits[1..]);
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    // Writing to a vector cannot fail.
    let _ = write!(out, "e{sign}{:02}", exponent.unsigned_abs());
}

/// Why a literal is not a float.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FloatError {
    /// Not a decimal number at all.
    #[error("not a decimal floating-point number")]
    Malformed,
    /// Too large, or too close to zero to be kept exactly or with full precision: what C calls `ERANGE`.
    #[error("floating-point number out of range")]
    OutOfRange,
}

/// Reads a float literal: digits with a point, and perhaps an exponent (`1.`, `.5`, `1.5e-3`; the lexer decides what
/// is one). Gives the nearest float.
///
/// # Errors
/// [`FloatError::OutOfRange`] where `strtod` sets `errno`, which Nix reports as `invalid float '…'`.
pub fn parse_float(literal: &[u8]) -> Result<f64, FloatError> {
    let text = std::str::from_utf8(literal).map_err(|_| FloatError::Malformed)?;
    if !text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-')) {
        return Err(FloatError::Malformed);
    }
    let value: f64 = text.parse().map_err(|_| FloatError::Malformed)?;
    if value.is_infinite() || (value.abs() < f64::MIN_POSITIVE && !is_exactly(text, value)) {
        return Err(FloatError::OutOfRange);
    }
    Ok(value)
}

/// Whether the decimal `text` is `value` without rounding.
fn is_exactly(text: &str, value: f64) -> bool {
    // The smallest float has 1074 decimals.
    decimal(text).is_some_and(|exact| decimal(&format!("{value:.1074}")).is_some_and(|other| exact == other))
}

/// The significant digits and the position of the point before them; zero has no digits.
fn decimal(text: &str) -> Option<(Vec<u8>, i64)> {
    let text = text.trim_start_matches(['+', '-']);
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    let Some(first) = digits.iter().position(|d| *d != b'0') else { return Some((Vec::new(), 0)) };
    let point = exponent.parse::<i64>().ok()?.checked_add(whole.len() as i64)?.checked_sub(first as i64)?;
    Some((trim_zeros(&digits[first..]).to_vec(), point))
}

/// Reads an integer literal: only digits. `None` if it is not one or exceeds a signed 64-bit integer, which Nix
/// reports as `invalid integer '…'`.
pub fn parse_int(literal: &[u8]) -> Option<i64> {
    if literal.is_empty() {
        return None;
    }
    literal.iter().try_fold(0i64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| i64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// Writes `value` as `nlohmann::json` does: `null` for what JSON cannot express, otherwise always with a point or an
/// exponent.
///
/// The library runs the Grisu2 algorithm (Florian Loitsch, "Printing floating-point numbers quickly and accurately
/// with integers", 2010), which in one case of a thousand prints a digit more than needed; so does this.
pub fn write_json_float(out: &mut Vec<u8>, value: f64) {
    if !value.is_finite() {
        out.extend(b"null");
        return;
    }
    if value.is_sign_negative() {
        out.push(b'-');
    }
    if value == 0.0 {
        out.extend(b"0.0");
        return;
    }
    let (digits, exponent) = grisu2(value.abs());
    // The value is 0.digits times ten to the power of `point`.
    let point = digits.len() as i32 + exponent;
    if (-3..=15).contains(&point) {
        write_positional(out, &digits, point);
        if digits.len() as i32 <= point {
            out.extend(b".0");
        }
    } else {
        write_exponential(out, &digits, point - 1);
    }
}

/// An unsigned number with its own binary exponent: `f` times two to the power of `e`.
#[derive(Clone, Copy)]
struct Wide {
    f: u64,
    e: i32,
}

impl Wide {
    /// Shifts the leading one to the top.
    fn normalized(self) -> Wide {
        let shift = self.f.leading_zeros();
        Wide { f: self.f << shift, e: self.e - shift as i32 }
    }

    /// The product, rounded to 64 bits.
    fn times(self, other: Wide) -> Wide {
        let product = u128::from(self.f) * u128::from(other.f);
        Wide { f: ((product + (1 << 63)) >> 64) as u64, e: self.e + other.e + 64 }
    }
}

/// The smallest binary exponent that a scaled number may have; the largest is 28 more.
const ALPHA: i32 = -60;

/// The first power in [`POWERS`] and the distance between two.
const FIRST_POWER: i32 = -300;
const POWER_STEP: i32 = 8;

/// The 64 leading bits of ten to the power of -300, -292, … 324, rounded.
#[rustfmt::skip]
const POWERS: [u64; 79] = [
    0xab70_fe17_c79a_c6ca, 0xff77_b1fc_bebc_dc4f, 0xbe56_91ef_416b_d60c, 0x8dd0_1fad_907f_fc3c, 0xd351_5c28_3155_9a83,
    0x9d71_ac8f_ada6_c9b5, 0xea9c_2277_23ee_8bcb, 0xaecc_4991_4078_536d, 0x823c_1279_5db6_ce57, 0xc210_9436_4dfb_5637,
    0x9096_ea6f_3848_984f, 0xd774_85cb_2582_3ac7, 0xa086_cfcd_97bf_97f4, 0xef34_0a98_172a_ace5, 0xb238_67fb_2a35_b28e,
    0x84c8_d4df_d2c6_3f3b, 0xc5dd_4427_1ad3_cdba, 0x936b_9fce_bb25_c996, 0xdbac_6c24_7d62_a584, 0xa3ab_6658_0d5f_daf6,
    0xf3e2_f893_dec3_f126, 0xb5b5_ada8_aaff_80b8, 0x8762_5f05_6c7c_4a8b, 0xc9bc_ff60_34c1_3053, 0x964e_858c_91ba_2655,
    0xdff9_7724_7029_7ebd, 0xa6df_bd9f_b8e5_b88f, 0xf8a9_5fcf_8874_7d94, 0xb944_7093_8fa8_9bcf, 0x8a08_f0f8_bf0f_156b,
    0xcdb0_2555_6531_31b6, 0x993f_e2c6_d07b_7fac, 0xe45c_10c4_2a2b_3b06, 0xaa24_2499_6973_92d3, 0xfd87_b5f2_8300_ca0e,
    0xbce5_0864_9211_1aeb, 0x8cbc_cc09_6f50_88cc, 0xd1b7_1758_e219_652c, 0x9c40_0000_0000_0000, 0xe8d4_a510_0000_0000,
    0xad78_ebc5_ac62_0000, 0x813f_3978_f894_0984, 0xc097_ce7b_c907_15b3, 0x8f7e_32ce_7bea_5c70, 0xd5d2_38a4_abe9_8068,
    0x9f4f_2726_179a_2245, 0xed63_a231_d4c4_fb27, 0xb0de_6538_8cc8_ada8, 0x83c7_088e_1aab_65db, 0xc45d_1df9_4271_1d9a,
    0x924d_692c_a61b_e758, 0xda01_ee64_1a70_8dea, 0xa26d_a399_9aef_774a, 0xf209_787b_b47d_6b85, 0xb454_e4a1_79dd_1877,
    0x865b_8692_5b9b_c5c2, 0xc835_53c5_c896_5d3d, 0x952a_b45c_fa97_a0b3, 0xde46_9fbd_99a0_5fe3, 0xa59b_c234_db39_8c25,
    0xf6c6_9a72_a398_9f5c, 0xb7dc_bf53_54e9_bece, 0x88fc_f317_f222_41e2, 0xcc20_ce9b_d35c_78a5, 0x9816_5af3_7b21_53df,
    0xe2a0_b5dc_971f_303a, 0xa8d9_d153_5ce3_b396, 0xfb9b_7cd9_a4a7_443c, 0xbb76_4c4c_a7a4_4410, 0x8bab_8eef_b640_9c1a,
    0xd01f_ef10_a657_842c, 0x9b10_a4e5_e991_3129, 0xe710_9bfb_a19c_0c9d, 0xac28_20d9_623b_f429, 0x8044_4b5e_7aa7_cf85,
    0xbf21_e440_03ac_dd2d, 0x8e67_9c2f_5e44_ff8f, 0xd433_179d_9c8c_b841, 0x9e19_db92_b4e3_1ba9,
];

/// The power of ten that scales a number of binary exponent `e` into the range, and its decimal exponent.
fn cached_power(e: i32) -> (Wide, i32) {
    let f = ALPHA - e - 1;
    // The factor is the binary logarithm of ten, inverted, times two to the power of 18.
    let k = (f * 78913) / (1 << 18) + i32::from(f > 0);
    let index = (-FIRST_POWER + k + (POWER_STEP - 1)) / POWER_STEP;
    let exponent = FIRST_POWER + index * POWER_STEP;
    (Wide { f: POWERS[index as usize], e: ((exponent * 217_706) >> 16) - 63 }, exponent)
}

/// The digits of a positive finite float and the decimal exponent of the last one.
fn grisu2(value: f64) -> (Vec<u8>, i32) {
    const HIDDEN: u64 = 1 << 52;
    let bits = value.to_bits();
    let (fraction, biased) = (bits & (HIDDEN - 1), (bits >> 52) as i32);
    let v = if biased == 0 { Wide { f: fraction, e: -1074 } } else { Wide { f: fraction | HIDDEN, e: biased - 1075 } };
    // The neighbours' midpoints: everything between them reads back as `value`.
    let upper = Wide { f: 2 * v.f + 1, e: v.e - 1 }.normalized();
    let lower = if fraction == 0 && biased > 1 {
        Wide { f: 4 * v.f - 1, e: v.e - 2 }
    } else {
        Wide { f: 2 * v.f - 1, e: v.e - 1 }
    };
    let lower = Wide { f: lower.f << (lower.e - upper.e), e: upper.e };

    let (power, decimal) = cached_power(upper.e);
    let (w, low, high) = (v.normalized().times(power), lower.times(power), upper.times(power));
    // One unit of doubt on each side for the rounding of the power and the product.
    digits(low.f + 1, w.f, Wide { f: high.f - 1, e: high.e }, -decimal)
}

/// Generates the digits of `high` until the rest is less than its distance from `low`, then goes back towards `w`.
fn digits(low: u64, w: u64, high: Wide, mut exponent: i32) -> (Vec<u8>, i32) {
    let shift = -high.e as u32;
    let one = 1u64 << shift;
    let (mut delta, mut distance) = (high.f - low, high.f - w);
    let (mut whole, mut fraction) = (high.f >> shift, high.f & (one - 1));
    let mut out = Vec::with_capacity(17);

    let mut left = if whole == 0 { 1 } else { whole.ilog10() + 1 };
    while left > 0 {
        let unit = 10u64.pow(left - 1);
        out.push(b'0' + (whole / unit) as u8);
        whole %= unit;
        left -= 1;
        let rest = (whole << shift) + fraction;
        if rest <= delta {
            round(&mut out, distance, delta, rest, unit << shift);
            return (out, exponent + left as i32);
        }
    }
    loop {
        fraction *= 10;
        out.push(b'0' + (fraction >> shift) as u8);
        fraction &= one - 1;
        exponent -= 1;
        delta *= 10;
        distance *= 10;
        if fraction <= delta {
            round(&mut out, distance, delta, fraction, one);
            return (out, exponent);
        }
    }
}

/// Lowers the last digit while that leads closer to the value and stays within the bounds.
fn round(digits: &mut [u8], distance: u64, delta: u64, mut rest: u64, unit: u64) {
    let Some(last) = digits.last_mut() else { return };
    while rest < distance
        && delta - rest >= unit
        && (rest + unit < distance || distance - rest > rest + unit - distance)
    {
        *last -= 1;
        rest += unit;
    }
}

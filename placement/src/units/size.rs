//! Sizes as people write them: `24GiB`, `24G`, `24576MiB`, `1.5GiB`, or bytes.

use std::str::FromStr;

use super::Bytes;

impl FromStr for Bytes {
    type Err = String;

    /// Binary units, with or without `iB`: `24G` is 24 GiB, as free memory is counted. Decimal ones (`24GB`) are 1000 to the step.
    fn from_str(text: &str) -> Result<Bytes, String> {
        let wrong = || format!("`{text}` is no size: write 24GiB, 24576MiB or a number of bytes");
        let text = text.trim();
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let factor = factor(unit.trim_start()).ok_or_else(wrong)?;
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(factor),
            Err(_) => {
                let scaled = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
                // Below 2^63 the conversion is exact enough for a size that was written with a fraction.
                (scaled < 2f64.powi(63)).then_some(scaled as u64)
            }
        };
        bytes.filter(|bytes| i64::try_from(*bytes).is_ok()).map(Bytes).ok_or_else(|| format!("`{text}` is more than 64 bits can count"))
    }
}

fn factor(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let steps = |prefix: &str| "kmgt".find(prefix).filter(|_| prefix.len() == 1).map(|at| at as u32 + 1);
    match unit.as_str() {
        "" | "b" => Some(1),
        _ => {
            if let Some(steps) = unit.strip_suffix("ib").or(unit.strip_suffix('i')).and_then(steps) {
                Some(1 << (10 * steps))
            } else if let Some(steps) = unit.strip_suffix('b').and_then(steps) {
                Some(1000u64.pow(steps))
            } else {
                steps(&unit).map(|steps| 1 << (10 * steps))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for text in ["24GiB", "24G", "24g", "24 GiB", "24Gi", "24576MiB", "25769803776", "25769803776B", "24.0GiB"] {
            assert_eq!(text.parse::<Bytes>(), Ok(Bytes::gib(24)), "{text}");
        }
        assert_eq!("1.5G".parse(), Ok(Bytes::mib(1536)));
        assert_eq!("24GB".parse(), Ok(Bytes(24_000_000_000)));
        assert_eq!("0".parse(), Ok(Bytes::ZERO));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "GiB", "-1", "24XiB", "24GiBs", "1.2.3G", "twenty", "24PiB", "i", "24 G i"] {
            assert!(text.parse::<Bytes>().unwrap_err().contains("is no size"), "{text}");
        }
        assert!("99999999999999TiB".parse::<Bytes>().unwrap_err().contains("more than 64 bits"));
        assert!("99999999999999.5TiB".parse::<Bytes>().unwrap_err().contains("more than 64 bits"));
    }
}

//! `strftime` for templates that write today's date, in UTC.

use std::fmt::Write;

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment by the Gregorian calendar.
struct Moment {
    year: u64,
    /// From 0.
    month: usize,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// From 0, Sunday.
    weekday: usize,
    second_of_day: u64,
}

impl Moment {
    fn at(unix_seconds: u64) -> Self {
        let mut days = unix_seconds / 86_400;
        let weekday = ((days + 4) % 7) as usize;
        // 400 years have 146097 days; what remains is walked year by year, then month by month.
        let mut year = 1970 + days / 146_097 * 400;
        days %= 146_097;
        while days >= 365 + leap(year) {
            days -= 365 + leap(year);
            year += 1;
        }
        let day_of_year = days + 1;
        let lengths = [31, 28 + leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month = 0;
        while days >= lengths[month] {
            days -= lengths[month];
            month += 1;
        }
        Self { year, month, day: days + 1, day_of_year, weekday, second_of_day: unix_seconds % 86_400 }
    }
}

fn leap(year: u64) -> u64 {
    u64::from(year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)))
}

/// The directives of C's `strftime` that templates use; others are kept as they stand.
pub(super) fn strftime(format: &str, unix_seconds: u64) -> String {
    let moment = Moment::at(unix_seconds);
    let mut out = String::with_capacity(format.len() + 16);
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('-') => match chars.next() {
                Some(directive) => {
                    let mut padded = String::new();
                    moment.write(&mut padded, directive);
                    let bare = padded.trim_start_matches(['0', ' ']);
                    out.push_str(if bare.is_empty() { "0" } else { bare });
                }
                None => out.push_str("%-"),
            },
            Some(directive) => moment.write(&mut out, directive),
            None => out.push('%'),
        }
    }
    out
}

impl Moment {
    fn write(&self, out: &mut String, directive: char) {
        let (hour, minute, second) =
            (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let (month, weekday) = (MONTHS[self.month], DAYS[self.weekday]);
        let written = match directive {
            'Y' => write!(out, "{}", self.year),
            'y' => write!(out, "{:02}", self.year % 100),
            'm' => write!(out, "{:02}", self.month + 1),
            'd' => write!(out, "{:02}", self.day),
            'e' => write!(out, "{:2}", self.day),
            'j' => write!(out, "{:03}", self.day_of_year),
            'B' => write!(out, "{month}"),
            'b' | 'h' => write!(out, "{}", &month[..3]),
            'A' => write!(out, "{weekday}"),
            'a' => write!(out, "{}", &weekday[..3]),
            'w' => write!(out, "{}", self.weekday),
            'u' => write!(out, "{}", (self.weekday + 6) % 7 + 1),
            'H' => write!(out, "{hour:02}"),
            'I' => write!(out, "{:02}", (hour + 11) % 12 + 1),
            'p' => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            'M' => write!(out, "{minute:02}"),
            'S' => write!(out, "{second:02}"),
            'f' => write!(out, "000000"),
            'Z' => write!(out, "UTC"),
            'z' => write!(out, "+0000"),
            'F' => write!(out, "{}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            'R' => write!(out, "{hour:02}:{minute:02}"),
            'D' => write!(out, "{:02}/{:02}/{:02}", self.month + 1, self.day, self.year % 100),
            'n' => out.write_char('\n'),
            't' => out.write_char('\t'),
            '%' => out.write_char('%'),
            other => write!(out, "%{other}"),
        };
        // Writing to a string does not fail.
        debug_assert!(written.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_python() {
        let all = "%Y-%m-%d %H:%M:%S %A %a %B %b %j %-d %e %I %p %y %u %w %% %q";
        assert_eq!(
            strftime(all, 951_826_554),
            "2000-02-29 12:15:54 Tuesday Tue February Feb 060 29 29 12 PM 00 2 2 % %q"
        );
        assert_eq!(strftime("%d %b %Y", 0), "01 Jan 1970");
        assert_eq!(strftime("%F %T %-d/%-m", 4_102_444_799), "2099-12-31 23:59:59 31/12");
        assert_eq!(strftime("%F", 13_574_563_200), "2400-02-29");
        assert_eq!(strftime("%", 0), "%");
    }
}

//! `strftime_now` of chat templates.
//!
//! Templates write today's date into the system prompt. The time is an argument, in UTC: two
//! replicas in different zones must build the same prompt, and so must a test.

use std::time::{Duration, SystemTime};

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
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

/// Formats `now` as C's `strftime` does in the C locale; `Err` names a directive that it lacks.
pub fn strftime(now: SystemTime, format: &str) -> Result<String, String> {
    let moment = Moment::new(now);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        // glibc's flag that leaves padding out.
        let bare = directive == Some('-');
        if bare {
            directive = chars.next();
        }
        let directive = directive.ok_or("%")?;
        let text = moment.field(directive).ok_or_else(|| format!("%{directive}"))?;
        let unpadded = text.trim_start_matches(['0', ' ']);
        match (bare, unpadded) {
            (false, _) => out.push_str(&text),
            (true, "") => out.push('0'),
            (true, _) => out.push_str(unpadded),
        }
    }
    Ok(out)
}

struct Moment {
    year: i64,
    /// 1 to 12.
    month: usize,
    day: i64,
    /// 1 to 366.
    year_day: i64,
    /// 0 is Sunday.
    week_day: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Moment {
    fn new(now: SystemTime) -> Self {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let seconds = since.as_secs();
        let days = (seconds / 86_400) as i64;
        let (mut year, mut left) = (1970, days);
        // 400 years have a whole number of days and weeks.
        year += left / 146_097 * 400;
        left %= 146_097;
        while left >= year_days(year) {
            left -= year_days(year);
            year += 1;
        }
        let year_day = left + 1;
        let mut month = 0;
        while left >= month_days(year, month) {
            left -= month_days(year, month);
            month += 1;
        }
        Self {
            year,
            month: month + 1,
            day: left + 1,
            year_day,
            // The epoch was a Thursday.
            week_day: ((days + 4) % 7) as usize,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }

    fn field(&self, directive: char) -> Option<String> {
        let week_day = DAYS[self.week_day];
        let month = MONTHS[self.month - 1];
        let hour12 = (self.hour + 11) % 12 + 1;
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.year_day),
            'B' => month.to_string(),
            'b' | 'h' => month[..3].to_string(),
            'A' => week_day.to_string(),
            'a' => week_day[..3].to_string(),
            'w' => self.week_day.to_string(),
            'u' => ((self.week_day + 6) % 7 + 1).to_string(),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour12:02}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_string(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'D' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            'R' => format!("{:02}:{:02}", self.hour, self.minute),
            'Z' => "UTC".to_string(),
            'z' => "+0000".to_string(),
            'n' => "\n".to_string(),
            't' => "\t".to_string(),
            '%' => "%".to_string(),
            _ => return None,
        })
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn year_days(year: i64) -> i64 {
    365 + i64::from(is_leap(year))
}

fn month_days(year: i64, month: usize) -> i64 {
    const DAYS: [i64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    DAYS[month] + i64::from(month == 1 && is_leap(year))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, format: &str) -> String {
        strftime(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), format).unwrap()
    }

    #[test]
    fn dates_that_go_wrong_first() {
        // Expected values from Python's datetime.
        assert_eq!(at(0, "%A %d %B %Y %H:%M:%S %j"), "Thursday 01 January 1970 00:00:00 001");
        assert_eq!(at(951_782_400, "%a %F %j"), "Tue 2000-02-29 060");
        assert_eq!(at(4_107_542_400, "%a %F %j"), "Mon 2100-03-01 060");
        assert_eq!(at(1_735_689_599, "%d %b %Y %I:%M %p %j"), "31 Dec 2024 11:59 PM 366");
        assert_eq!(at(1_722_470_400, "%-d/%-m/%y %e%%"), "1/8/24  1%");
        assert_eq!(at(1_722_470_400, "%-H"), "0");
    }

    #[test]
    fn an_unknown_directive_is_named() {
        assert_eq!(strftime(SystemTime::UNIX_EPOCH, "%d %Q"), Err("%Q".into()));
        assert_eq!(strftime(SystemTime::UNIX_EPOCH, "%"), Err("%".into()));
    }
}

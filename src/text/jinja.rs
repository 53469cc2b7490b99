//! The additions to Jinja that transformers makes for chat templates, except the filter `tojson`: `strftime_now` and
//! `{% generation %}`.
use minijinja::Value;

/// The prefix of errors that the template raised itself.
pub(super) const RAISED: &str = "raise_exception: ";

/// The message of `error` with its line number and the errors that caused it.
pub(super) fn describe(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Replaces `{% generation %}` blocks, which mark the assistant's text for training and which the template engine
/// does not know. They become `{% if true %}` blocks with the same whitespace control.
pub(super) fn without_generation_tags(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        // A tag cannot consist of `{%}`, because its two ends share no character.
        let Some(len) = tag[2..].find("%}").map(|at| at + 2) else {
            rest = tag;
            break;
        };
        let inner = &tag[2..len];
        match inner.trim_matches(['-', '+', ' ', '\t', '\n', '\r']) {
            word @ ("generation" | "endgeneration") => {
                let replacement = if word == "generation" { "if true" } else { "endif" };
                out.push_str("{%");
                out.push_str(&inner.replace(word, replacement));
                out.push_str("%}");
            }
            _ => out.push_str(&tag[..len + 2]),
        }
        rest = &tag[len + 2..];
    }
    out.push_str(rest);
    out
}

/// The test `iterable`, as Python has it: the template engine's own test is also true for `none`, and templates use
/// the test on tools before they count them.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && (value.as_str().is_some() || value.try_iter().is_ok())
}

/// The current time in seconds since 1970 UTC.
pub(super) fn clock() -> i64 {
    #[cfg(not(target_family = "wasm"))]
    {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs() as i64)
    }
    #[cfg(target_family = "wasm")]
    {
        (js_sys::Date::now() / 1000.0) as i64
    }
}

/// Formats `now`, in seconds since 1970 UTC, with the conversions of `strftime` that chat templates use. An unknown
/// conversion is an error, because a wrong date in the prompt would be worse.
pub(super) fn strftime(format: &str, now: i64) -> Result<String, minijinja::Error> {
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
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, seconds) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, day) = civil_date(days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[days.rem_euclid(7) as usize]);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        // As in the C library, "-" leaves out the zeros and blanks that pad a number.
        let bare = chars.as_str().starts_with('-');
        let conversion = if bare { chars.nth(1) } else { chars.next() };
        let written = match conversion {
            Some('Y') => year.to_string(),
            Some('C') => format!("{:02}", year.div_euclid(100)),
            Some('y') => format!("{:02}", year.rem_euclid(100)),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('j') => format!("{:03}", days - days_before(year) + 1),
            Some('B') => month_name.to_string(),
            Some('b' | 'h') => month_name[..3].to_string(),
            Some('A') => day_name.to_string(),
            Some('a') => day_name[..3].to_string(),
            Some('u') => ((days + 3).rem_euclid(7) + 1).to_string(),
            Some('w') => (days + 4).rem_euclid(7).to_string(),
            Some('H') => format!("{hour:02}"),
            Some('k') => format!("{hour:2}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('l') => format!("{:2}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('s') => now.to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('c') => {
                format!("{} {} {day:2} {hour:02}:{minute:02}:{second:02} {year}", &day_name[..3], &month_name[..3])
            }
            Some('Z') => "UTC".to_string(),
            Some('z') => "+0000".to_string(),
            Some('n') => "\n".to_string(),
            Some('t') => "\t".to_string(),
            Some('%') => "%".to_string(),
            other => {
                let other = other.map_or("%".to_string(), |c| format!("%{}{c}", if bare { "-" } else { "" }));
                let message = format!("strftime_now does not know the conversion {other}");
                return Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message));
            }
        };
        match bare && conversion.is_some_and(|c| "CymdejHkIlMS".contains(c)) {
            true => out.push_str(match written.trim_start_matches(['0', ' ']) {
                "" => "0",
                digits => digits,
            }),
            false => out.push_str(&written),
        }
    }
    Ok(out)
}

/// The number of days from 1970-01-01 to the first day of `year`.
fn days_before(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400) - 719_162
}

/// Year, month (1 to 12) and day of the month in the Gregorian calendar, for a number of days since 1970-01-01.
fn civil_date(days: i64) -> (i64, usize, i64) {
    // Days are counted from 0000-03-01 in eras of 400 years. Years then begin in March, and the leap day is the last
    // day.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as usize, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_centuries() {
        // The expected texts were computed with Python's datetime.
        for (now, expected) in [
            (0, "1970-01-01 Thursday 00:00:00"),
            (951_782_400, "2000-02-29 Tuesday 00:00:00"),
            (1_709_251_199, "2024-02-29 Thursday 23:59:59"),
            (4_107_542_400, "2100-03-01 Monday 00:00:00"),
            (-1, "1969-12-31 Wednesday 23:59:59"),
        ] {
            assert_eq!(strftime("%F %A %T", now).ok().as_deref(), Some(expected));
        }
        assert_eq!(strftime("%d %b %Y, %I %p", 1_709_251_199).ok().as_deref(), Some("29 Feb 2024, 11 PM"));
        assert_eq!(
            strftime("%-d %b %Y %-H:%M %j", 1_709_251_199 - 28 * 86_400).ok().as_deref(),
            Some("1 Feb 2024 23:59 032")
        );
        assert_eq!(strftime("%-m/%-d/%y %u %w %D %R", 0).ok().as_deref(), Some("1/1/70 4 4 01/01/70 00:00"));
        assert_eq!(strftime("%-j %j", 1_735_603_200).ok().as_deref(), Some("366 366"));
        assert!(strftime("%Q", 0).is_err_and(|e| e.to_string().contains("does not know the conversion %Q")));
    }

    #[test]
    fn an_unclosed_tag_is_left_alone() {
        assert_eq!(without_generation_tags("{% unclosed"), "{% unclosed");
    }
}

"""Documents with planted personal data whose truth is known, and with look-alikes that are none.

Check digits are computed here by the textbook, not by the package.
"""

import random
import string

import phonenumbers

WORDS = (
    "the report was sent to all members of staff before noon and nobody answered until late in the evening because "
    "most had left for a walk along the river where old boats lie under willows and children feed ducks with bread"
).split()
HEX = "0123456789abcdef"
ALNUM = string.ascii_letters + string.digits
KINDS = ("email", "phone", "ip", "card", "iban", "national_id", "secret", "credentials")


def digits(rng, count):
    return "".join(rng.choices(string.digits, k=count))


def luhn_digit(body):
    doubled = [int(d) * (2 if i % 2 == 0 else 1) for i, d in enumerate(reversed(body))]
    return str(-sum(d // 10 + d % 10 for d in doubled) % 10)


def email(rng):
    name = rng.choice(
        ["ann.lee", "bob", "j.r_smith", "maria-luisa", "x99", "o'neill", "josé", "first.last+list"]
    )
    domain = rng.choice(["mail", "uni-köln", "news.corp", "a-b", "lab3"])
    return f"{name}{rng.randrange(100)}@{domain}.{rng.choice(['com', 'de', 'co.uk', 'org', 'museum', 'io'])}"


def phone(rng):
    while True:
        region = rng.choice(
            ["US", "GB", "DE", "FR", "ES", "IT", "NL", "PL", "BR", "IN", "JP", "AU", "SE", "MX", "US"]
        )
        example = phonenumbers.example_number_for_type(region, rng.choice([0, 1]))
        text = str(example.national_number)
        changed = text[:-5] + digits(rng, 5)
        number = phonenumbers.parse(changed, region)
        if phonenumbers.is_valid_number(number):
            style = phonenumbers.PhoneNumberFormat
            chosen = (
                style.INTERNATIONAL if region != "US" else rng.choice([style.INTERNATIONAL, style.NATIONAL])
            )
            return phonenumbers.format_number(number, chosen)


def ip(rng):
    if rng.random() < 0.3:
        return "2a02:" + ":".join(f"{rng.randrange(1, 65536):x}" for _ in range(7))
    return f"{rng.choice([8, 23, 64, 81, 93, 145, 212])}." + ".".join(
        str(rng.randrange(256)) for _ in range(3)
    )


def card(rng):
    start, length = rng.choice(
        [("4", 16), ("51", 16), ("37", 15), ("6011", 16), ("2221", 16), ("3530", 16), ("36", 14)]
    )
    body = start + digits(rng, length - len(start) - 1)
    number = body + luhn_digit(body)
    if length == 16 and rng.random() < 0.6:
        return rng.choice([" ", "-"]).join(number[i : i + 4] for i in range(0, 16, 4))
    return f"{number[:4]} {number[4:10]} {number[10:]}" if length == 15 and rng.random() < 0.5 else number


def iban(rng):
    country, body = rng.choice(
        [("DE", digits(rng, 18)), ("GB", "NWBK" + digits(rng, 14)), ("FR", digits(rng, 23)), ("NO", digits(rng, 11)),
         ("NL", "ABNA" + digits(rng, 10)), ("MT", "MALT" + digits(rng, 5) + digits(rng, 18)), ("PL", digits(rng, 24))]
    )  # fmt: skip
    value = int("".join(str(int(c, 36)) for c in f"{body}{country}00"))
    number = f"{country}{98 - value % 97:02d}{body}"
    return " ".join(number[i : i + 4] for i in range(0, len(number), 4)) if rng.random() < 0.5 else number


def national_id(rng):
    kind = rng.choice(["us", "es", "fr", "br", "pl", "cn", "fi", "de", "se"])
    date = f"{rng.randrange(50, 99):02d}{rng.randrange(1, 13):02d}{rng.randrange(1, 29):02d}"
    if kind == "us":
        return f"{rng.randrange(100, 600):03d}-{rng.randrange(1, 99):02d}-{rng.randrange(1, 9999):04d}"
    if kind == "es":
        body = digits(rng, 8)
        return body + "TRWAGMYFPDXBNJZSQVHLCKE"[int(body) % 23]
    if kind == "fr":
        body = f"{rng.choice('12')}{date[:4]}{rng.randrange(1, 95):02d}{digits(rng, 6)}"
        return f"{body}{97 - int(body) % 97:02d}"
    if kind == "br":
        body = digits(rng, 9)
        for size in (10, 11):
            rest = sum(int(d) * w for d, w in zip(body, range(size, 1, -1), strict=True)) % 11
            body += "0" if rest < 2 else str(11 - rest)
        return f"{body[:3]}.{body[3:6]}.{body[6:9]}-{body[9:]}"
    if kind == "pl":
        body = date + digits(rng, 4)
        return body + str(-sum(int(d) * w for d, w in zip(body, [1, 3, 7, 9] * 2 + [1, 3], strict=True)) % 10)
    if kind == "cn":
        body = f"110101{19}{date}{digits(rng, 3)}"
        return body + "10X98765432"[sum(int(d) * pow(2, 17 - i, 11) for i, d in enumerate(body)) % 11]
    if kind == "fi":
        day, number = date[4:] + date[2:4] + date[:2], f"{rng.randrange(2, 900):03d}"
        return f"{day}-{number}{'0123456789ABCDEFHJKLMNPRSTUVWXY'[int(day + number) % 31]}"
    if kind == "de":
        ten = [*rng.sample(string.digits[1:], 9), "0"]
        ten[9] = ten[0]
        product = 10
        for digit in map(int, ten):
            product = ((digit + product) % 10 or 10) * 2 % 11
        whole = "".join(ten) + str((11 - product) % 10)
        return f"Steuer-ID {whole[:2]} {whole[2:5]} {whole[5:8]} {whole[8:]}"
    return f"{date}-{(body := digits(rng, 3))}{luhn_digit(date + body)}"


def secret(rng):
    def key(count, alphabet=ALNUM):
        return "".join(rng.choices(alphabet, k=count))

    return rng.choice(
        [
            "AKIA" + key(16, string.ascii_uppercase + "234567"),
            "ghp_" + key(36),
            "AIza" + key(35),
            "sk-proj-" + key(48),
            "xoxb-" + digits(rng, 12) + "-" + key(24),
            "hf_" + key(34, string.ascii_letters),
            "eyJ" + key(30) + ".eyJ" + key(60) + "." + key(43),
            "glpat-" + key(20),
        ]
    )


def credentials(rng):
    return f"{rng.choice(['ann', 'deploy', 'root'])}:{''.join(rng.choices(ALNUM + '!_-', k=12))}"


def look_alike(rng):
    """Return text that has the form of personal data, or nearly, and is none."""
    card_like = "4" + digits(rng, 14)
    wrong = card_like + str((int(luhn_digit(card_like)) + rng.randrange(1, 10)) % 10)
    return rng.choice(
        [
            lambda: f"logo@{rng.randrange(2, 4)}x.png",
            lambda: f"git@github.com:team/project{rng.randrange(99)}.git",
            lambda: f"@decorator{rng.randrange(99)}",
            lambda: f"user@localhost:{rng.randrange(1000, 9999)}",
            lambda: f"package@{rng.randrange(9)}.{rng.randrange(20)}.{rng.randrange(20)}",
            lambda: f"order {digits(rng, 10)}",
            lambda: (
                f"on {rng.randrange(1990, 2030)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d} at 10:45:12"
            ),
            lambda: f"ISBN 978-{rng.randrange(9)}-{digits(rng, 2)}-{digits(rng, 6)}-{rng.randrange(9)}",
            lambda: (
                f"{digits(rng, 3)} {digits(rng, 4)} {digits(rng, 3)} {digits(rng, 5)} {digits(rng, 2)} units"
            ),
            lambda: f"{rng.randrange(1, 9)}.{digits(rng, 9)}e-{rng.randrange(1, 20)}",
            lambda: f"{digits(rng, 13)} ms",
            lambda: (
                f"version {rng.randrange(1, 20)}.{rng.randrange(20)}.{rng.randrange(20)}.{rng.randrange(20)}"
            ),
            lambda: f"192.168.{rng.randrange(256)}.{rng.randrange(256)}",
            lambda: f"10.0.0.{rng.randrange(256, 999)}",
            lambda: f"{rng.randrange(1, 9)}.3.6.1.4.1.{rng.randrange(9999)}",
            lambda: f"std::{rng.choice(['beef', 'cafe', 'vector'])}::face",
            lambda: f"00:1a:2b:{rng.randrange(16, 99)}:4d:5e",
            lambda: wrong,
            lambda: " ".join(wrong[i : i + 4] for i in range(0, 16, 4)),
            lambda: f"9{digits(rng, 15)}",
            lambda: f"DE{digits(rng, 20)}",
            lambda: f"GB29 NWBK {digits(rng, 4)} {digits(rng, 4)} {digits(rng, 6)}",
            lambda: f"{rng.choice(['000', '666', '912'])}-{digits(rng, 2)}-{digits(rng, 4)}",
            lambda: f"{digits(rng, 11)} bytes",
            lambda: "".join(rng.choices(HEX, k=40)),
            lambda: "-".join("".join(rng.choices(HEX, k=k)) for k in (8, 4, 4, 4, 12)),
            lambda: "AKIAIOSFODNN7EXAMPLE",
            lambda: "sk-" + "a" * 48,
            lambda: f"task-{''.join(rng.choices(ALNUM, k=40))}",
            lambda: 'password = "your_password_here"',
            lambda: "api_key = os.environ['API_KEY']",
            lambda: "https://user:password@host.org/",
            lambda: f"https://host.org:{rng.randrange(1000, 9999)}/@ann/status/{digits(rng, 18)}",
            lambda: f"#{digits(rng, 7)} and $1,{digits(rng, 3)},{digits(rng, 3)}.{digits(rng, 2)}",
        ]
    )()


def documents(count, seed=0):
    """Return texts, and for each its planted items: (kind, text)."""
    rng = random.Random(seed)
    texts, truth = [], []
    for number in range(count):
        planted, parts = [], rng.choices(WORDS, k=30)
        for kind in dict.fromkeys((KINDS[number % len(KINDS)], rng.choice(KINDS))):
            value = globals()[kind](rng)
            shown = f"https://{value}@host.org/data" if kind == "credentials" else value
            planted.append((kind, value.removeprefix("Steuer-ID ")))
            parts.insert(rng.randrange(len(parts)), rng.choice(["{}", "({})", "{},", "{}."]).format(shown))
        for _ in range(2):
            place = rng.randrange(len(parts))
            parts.insert(place, f"the {look_alike(rng)};")
        texts.append(" ".join(parts))
        truth.append(planted)
    return texts, truth

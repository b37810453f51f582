"""Texts on which tokenizers tend to differ: many scripts, emoji, code, digits, and white space of every kind."""

_ENGLISH = [
    "Hello, world! It's 12345 o'clock, isn't it?",
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "don't DON'T we'll WE'LL they've I'M he'd She'S y'all'd've rock'n'roll",
    "It’s a ‘smart’ “quote”, isn’t it?",
    "CamelCase, snake_case, kebab-case, SCREAMING_SNAKE, iPhone, McDonald, HTTPServer2Go, éCole",
    "e.g. U.S.A. vs. Ph.D.... wait?!?! --- no -- yes… (maybe) [sic] {x} <y>",
    "unwindowed windows unwind the window windowing",
]

_SCRIPTS = [
    "naïve café Ünïcödé straße ĲSSEL ŒUVRE ﬁne ǅ ʰʲ ªº",
    "Der Dampfschifffahrtsgesellschaftskapitän grüßt Übermütige.",
    "Съешь ещё этих мягких французских булок, да выпей чаю. ЁЛКА ёлка",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ΣΊΣΥΦΟΣ σίσυφος",
    "日本語のテキスト、カタカナとひらがな。ﾊﾝｶｸ ＦＵＬＬ１２３",
    "中文字符，標點符號！第３章：一二三。𠀀𠮷",
    "한국어 텍스트와 띄어쓰기, 가각힣.",
    "هذا نص عربي مع أرقام ١٢٣٤٥ وتشكيل: مُحَمَّد",
    "זהו טקסט בעברית עִם נִקּוּד",
    "यह हिन्दी का एक वाक्य है, अंक १२३४ क्षत्रिय",
    "বাংলা ভাষায় লেখা একটি বাক্য। তামিল: தமிழ் எழுத்து",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ ๑๒๓",
    "កាន់តែពិសេសអាច ქართული ენა Հայերեն ᏣᎳᎩ አማርኛ",
    "Tiếng Việt có nhiều dấu: ă â đ ê ô ơ ư ạ ặ ậ",
    "Ⅷ ½ ² ³ ₁ ① ⑳ ㊙ ℵ ∑ ∀x∈ℝ: x²≥0 ⇒ √x≤∞ ≠ ±",
]

_COMBINING = [
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "Z\u0351\u036b\u0343\u036aa\u0300\u0301\u0302lgo\u0315",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "\u212b \u2126 \ufb01 \uff21",
]

_EMOJI = [
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ 🦙🦙",
    "👩‍👩‍👧‍👦 👍🏽 🇨🇭🇯🇵 ❤️ ☺ 1️⃣ 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "no space🙂between🙃words",
]

_CODE = [
    'fn main() {\n    let x: Vec<u32> = vec![1, 2, 3];\n    println!("{}", x.len());\n}\n',
    "def f(x):\n\tif x == 0:\n\t\treturn [i**2 for i in range(10) if i % 2 != 0]\n\telse:\n\t\tpass\n",
    "<div class=\"a-b\" id='c'>&nbsp;&lt;!-- x --&gt;</div>",
    "SELECT * FROM t WHERE a='it''s' AND b<>c; -- comment",
    "https://example.org/path/to?q=a+b&c=%20#frag user@host.tld /usr/local/bin C:\\Temp\\new",
    "a=b+c*d/e-f%g^h|i&j~k!l<m>n?o:p;q,r.s`t\\u@v#w$x",
    "//// /* */ /**/ ======== ------- ####### \\n \\\\ ''' \"\"\" ```rust\nlet a = 1;\n```",
    '{"key": [1, 2.5, -3e10, null, true], "other": {"nested": "va\\"lue"}}',
    "x = 0xDEADBEEF; y = 1_000_000; z = 3.14159e-10f; w = 0b1010",
]

_DIGITS = [
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3",
    "1234567890 12,345,678.90 1st 2nd 3rd 4x4 a1b2c3 2024-12-31T23:59:59Z +41 79 123 45 67",
    "٣٣ १२३ ۴۵۶ ０１２ 1٣2",
]

_SPACE = [
    "",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\n\n\n",
    "\t",
    "\t\t",
    "\r\n",
    "\r\n\r\n",
    " \n",
    "\n ",
    " a",
    "a ",
    "  a",
    "a  ",
    "   leading and trailing   ",
    "a  b   c    d     e      f       g        h",
    "a\nb\n\nc\n\n\nd\r\ne\r\n\r\nf\rg",
    "a \n b  \n  c \t d\t\te \n\n \n\n\n f",
    "\n\n\ttabs\tand\nnewlines\r\n  \n x",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n",
    "trailing newline\n",
    "trailing newlines\n\n\n",
    "ends with a space and newline \n",
    "a\u00a0b\u2003c\u3000d\u200be\u2028f\u2029g\u0085h\ufeffi\u202fj",
    "zero\u0000null \u0007bell \u001besc \u007fdel \u00adshy",
    "!\n?\n\n.\r\n;\n x)\n\n\ty/\n/\n",
    "    four spaces\n        eight spaces\n\tone tab\n",
]

_EDGES = [
    "\ufffd \ue000 \U000f0000 \U0010ffff \ud7ff",
    "▁ underline ▁▁ twice ▁a",
    "Ġ is how a byte-level vocabulary writes a space, Ċ a newline",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!????????????????................",
    "##prefix ##ing [UNKNOWN] un##affable",
]

TEXTS = [*_ENGLISH, *_SCRIPTS, *_COMBINING, *_EMOJI, *_CODE, *_DIGITS, *_SPACE, *_EDGES]


def with_special(special: str, user_defined: str) -> list[str]:
    """Texts around a control token and a token that is always read."""
    return [
        special,
        f"{special}{special}",
        f"a{special}b",
        f"a {special} b",
        f"\n{special}\n\n",
        f"{special[:-1]} {special[1:]} {special.upper()}",
        user_defined,
        f"a{user_defined}b",
        f"a {user_defined} b {user_defined}{user_defined}c",
        f"{special}{user_defined}\n{special} x {user_defined[:-1]}",
    ]

"""Answers made to hang, crash, exhaust or take over whatever grades them: (name, response). No gold is theirs."""


def boxed(answer: str) -> str:
    return f"The answer is \\boxed{{{answer}}}."


def payload(marker: str) -> list[tuple[str, str]]:
    """Answers that create the file `marker` if anything evaluates them."""
    touch = f"open({marker!r}, 'w')"
    return [
        ("eval_import", boxed(f"__import__('os').system('touch {marker}')")),
        ("eval_open", boxed(touch)),
        ("sympify_lambda", boxed(f"(lambda: {touch})()")),
        (
            "parse_expr_attribute",
            boxed(f"x.__class__.__init__.__globals__['__builtins__']['open']({marker!r}, 'w')"),
        ),
        ("parse_expr_digits", boxed(f"1 if {touch} else 2")),
        ("latex_text_payload", boxed(f"\\text{{__import__('os').system('touch {marker}')}}")),
        ("subclasses", boxed(f"[c for c in ().__class__.__base__.__subclasses__()][0] or {touch}")),
        ("format_string", boxed("{0.__class__.__init__.__globals__}{gold.__class__}%s%s%n")),
        ("pickle", boxed(f"cposix\nsystem\n(S'touch {marker}'\ntR.")),
        ("yaml_tag", boxed(f"!!python/object/apply:os.system ['touch {marker}']")),
        ("latex_write18", boxed(f"\\immediate\\write18{{touch {marker}}}")),
        ("latex_input", boxed("\\input{/etc/passwd}")),
        ("shell", boxed(f"$(touch {marker}); `touch {marker}`")),
        ("plain_payload", f"__import__('os').system('touch {marker}')"),
    ]


TOWERS = [
    ("power_tower", boxed("9^{9^{9}}")),
    ("power_tower_plain", boxed("9**9**9**9")),
    ("power_tower_five", boxed("10^{10^{10^{10^{10}}}}")),
    ("power_tower_fraction", boxed(r"\frac{1}{9^{9^{9^{9}}}}")),
    ("power_tower_root", boxed(r"\sqrt[9]{9^{9^{9^9}}}")),
    ("power_tower_sum", boxed("2^{3^{4^{5^{6}}}} - 2^{3^{4^{5^{6}}}} + 1")),
    ("power_negative", boxed("9^{-9^{9^9}}")),
    ("power_of_product", boxed(r"(2 \cdot 3)^{99999999999}")),
    ("letter_tower", boxed("x^{" * 30 + "x" + "}" * 30)),
    ("power_decimal", boxed("1.0000001^{10^{12}}")),
    ("power_exp", boxed(r"e^{e^{e^{e^{e}}}}")),
    ("power_mod", boxed(r"2^{10^{10}} \mod 7")),
    ("scientific", boxed("1e999999999")),
    ("scientific_times", boxed(r"1 \times 10^{999999999999}")),
]
COMBINATORIAL = [
    ("factorial", boxed("10000000!")),
    ("factorial_twice", boxed("(100!)!")),
    ("factorial_tower", boxed("((9!)!)!")),
    ("factorial_quotient", boxed(r"\frac{99999999!}{99999998!}")),
    ("binomial", boxed(r"\binom{1000000000}{500000000}")),
    ("binomial_nested", boxed(r"\binom{\binom{1000}{500}}{3}")),
    ("sum", boxed(r"\sum_{k=1}^{1000000000} k^{k}")),
    ("sum_nested", boxed(r"\sum_{i=1}^{10^6} \sum_{j=1}^{10^6} \frac{1}{i+j}")),
    ("sum_nested_deeply", boxed(r"\sum_{i=1}^{100} \sum_{j=1}^{100} \sum_{k=1}^{100} \sum_{m=1}^{100} ijkm")),
    ("product", boxed(r"\prod_{k=1}^{100000000} (k^2+1)")),
    ("integral", boxed(r"\int_0^{\infty} \frac{\sin(x^{x^x})}{x^5+\ln x} dx")),
    ("limit", boxed(r"\lim_{n \to \infty} \left(1+\frac{1}{n}\right)^{n^{n}}")),
    ("expand", boxed("(x+y+z+w+v+u)^{3000}")),
    ("expand_nested", boxed("((((x+1)^{99}+1)^{99}+1)^{99}+1)^{99}")),
    (
        "determinant",
        boxed(r"\det \begin{pmatrix} " + r" \\ ".join(["a & b & c & d & e"] * 5) + r"\end{pmatrix}^{5000}"),
    ),
    ("solve", boxed("x^{17} - 3x^{13} + 7x^{11} = \\sqrt{x^7+\\sqrt{x^5+\\sqrt{x^3+x}}}")),
]
LONG = [
    ("nested_brackets", boxed("(" * 20_000 + "1" + ")" * 20_000)),
    ("nested_roots", boxed(r"\sqrt{" * 5_000 + "2" + "}" * 5_000)),
    ("nested_fractions", boxed(r"\frac{1}{1+" * 3_000 + "1" + "}" * 3_000)),
    ("nested_braces_open", boxed("{" * 50_000)),
    ("nested_boxes", "\\boxed{" * 20_000 + "1" + "}" * 20_000),
    ("unclosed_boxes", "\\boxed{" * 100_000),
    ("digits", boxed("7" * 100_000)),
    ("digits_decimal", boxed("3." + "1" * 100_000)),
    ("digits_commas", boxed(",".join(["123"] * 50_000))),
    ("long_set", boxed(r"\{" + ", ".join(f"x_{{{k}}}^2" for k in range(2_000)) + r"\}")),
    ("long_set_of_roots", boxed(r"\{" + ", ".join(f"\\sqrt{{{k}}}" for k in range(2_000)) + r"\}")),
    ("long_sum", boxed("+".join(["x"] * 20_000))),
    ("long_minus", boxed("-" * 100_000 + "1")),
    ("plus_minus", boxed(r"\pm 1 " * 40 + "1")),
    ("plus_minus_list", boxed(", ".join([r"\pm 1 \pm 2 \pm 3 \pm 4"] * 300))),
    ("many_relations", boxed(" < ".join(f"x_{k}" for k in range(5_000)))),
    ("matrix", boxed(r"\begin{pmatrix}" + r" \\ ".join([" & ".join(["1"] * 60)] * 60) + r"\end{pmatrix}")),
    ("blanks", boxed("1" + " " * 3_000_000 + "2")),
    ("blanks_outside", "The answer is" + " " * 3_000_000),
    ("newlines", "Answer:" + "\n" * 3_000_000),
    ("backslashes", boxed("\\" * 2_000_000)),
    ("backslashes_outside", "\\" * 3_000_000),
    ("dollars", "$" * 1_000_000),
    ("stars", "answer " + "*" * 1_000_000),
    ("regex_words", boxed("a" * 200_000 + "!")),
    ("regex_spaces", "answer is " * 100_000),
    ("regex_nested", boxed("(a+)+" * 20_000 + "$")),
    ("regex_text", boxed(r"\text{" * 20_000 + "}" * 20_000)),
    ("hashes", "#### " * 200_000),
    ("percent_signs", boxed("%" * 100_000)),
    ("commas", boxed("," * 100_000)),
    ("equals", boxed("=" * 100_000)),
    ("carets", boxed("2" + "^2" * 50_000)),
    ("subscripts", boxed("x" + "_{1" * 20_000 + "}" * 20_000)),
    ("question_fractions", boxed("1/" * 50_000 + "1")),
]
UNICODE = [
    ("zero_width", boxed("1\u200b\u200c\u200d" * 10_000)),
    ("right_to_left", boxed("\u202e12\u202c34")),
    ("combining", boxed("1" + "\u0301" * 100_000)),
    ("surrogate", boxed("\ud800\udfff5")),
    ("null", boxed("5\x00\x01\x02")),
    ("ligatures", boxed("\ufdfa" * 50_000)),
    ("digits_of_all_scripts", boxed("٣٤५६७８９")),
    ("homoglyphs", boxed("Ⅷ𝟠⑧")),
    ("private_use", boxed("\ue000\ue001\uf8ff")),
    ("superscript_tower", boxed("9" + "⁹" * 50_000)),
    ("vulgar", boxed("½" * 20_000)),
]


def hostile_rows(marker: str) -> list[tuple[str, str]]:
    return payload(marker) + TOWERS + COMBINATORIAL + LONG + UNICODE

"""The reasoning-gym families that are verified, and those refused and why (reasoning-gym 0.1.25).

A family is allowed when the source of its scorer, with every function of the library that it calls, names
none of eval, exec, parse_expr and sympify, and when a probe of 20 items finds that its gold is accepted and
that no junk is: tests hold both. Many scorers take more than the right answer (any text, `nan`, the gold and
another one), so the verifier asks for more than their full score: see `pipeline.verify.gym`.
"""

import re

# fmt: off
ALLOWED = frozenset([
    "ab", "acre", "advanced_geometry", "aiw", "arc_1d", "base_conversion", "basic_arithmetic",
    "bf", "binary_alternation", "caesar_cipher", "calendar_arithmetic", "chain_sum",
    "circuit_logic", "codeio", "coin_flip", "color_cube_rotation", "complex_arithmetic", "count_bits",
    "count_primes", "course_schedule", "cryptarithm", "decimal_arithmetic", "decimal_chain_sum", "dice",
    "emoji_mystery", "family_relationships", "figlet_font", "fraction_simplification", "futoshiki",
    "game_of_life", "game_of_life_halting", "gcd", "group_anagrams", "gsm_symbolic",
    "isomorphic_strings", "jugs", "kakurasu", "knight_swap", "knights_knaves", "largest_island", "lcm",
    "leg_counting", "letter_counting", "letter_jumble", "list_functions", "mahjong_puzzle",
    "manipulate_matrix", "maze", "mini_sudoku", "modulo_grid", "needle_haystack", "number_filtering",
    "number_format", "number_sequence", "palindrome_generation", "palindrome_partitioning", "path_star",
    "polynomial_equations", "pool_matrix", "prime_factorization", "products",
    "ransom_note", "rectangle_count", "rotate_matrix",
    "rotten_oranges", "self_reference", "sentence_reordering", "shortest_path",
    "simple_equations", "simple_geometry", "spell_backward", "string_manipulation",
    "string_splitting", "string_synthesis", "sudoku", "survo", "syllogism", "time_intervals",
    "tower_of_hanoi", "tsumego", "word_ladder", "word_sequence_reversal", "word_sorting", "zebra_puzzles",
])
# fmt: on

# the families whose questions have several right answers: how one answer is written, from end to end
SEVERAL = {
    "cryptarithm": re.compile(r"(?:([A-Z])\s?=\s?\d(?!.*\1\s?=)(?:,\s?|$))+"),
    "jugs": re.compile(r'\[(?:"[\w >-]+"(?:,\s?|(?=\])))+\]'),
    "kakurasu": re.compile(r"[01\s]+"),
    "knight_swap": re.compile(r'[Nn]o|\[(?:"[wB],\w+,\w+"(?:,\s?|(?=\])))+\]'),
    "palindrome_generation": re.compile(r"[a-z]+", re.IGNORECASE),
    "shortest_path": re.compile(r"infeasible|(?:up|down|left|right)(?:\s(?:up|down|left|right))*"),
    "tower_of_hanoi": re.compile(r"(?:Move disk \d+ from Peg \d+ to Peg \d+\s*)+"),
    "word_ladder": re.compile(r"[A-Z]+(?:,\s?[A-Z]+)+", re.IGNORECASE),
}

REFUSED = {
    "arc_agi": "its scorer compares with tuples, which a stored item does not hold: no answer would be right",
    "binary_matrix": "its scorer calls eval on the answer",
    "bitwise_arithmetic": "its scorer calls eval",
    "boxnet": "its items have no gold answer",
    "composite": "its scorer passes the answer to the scorer of any other family",
    "countdown": "its scorer calls parse_expr on the answer",
    "graph_color": "its items have no gold answer",
    "intermediate_integration": "its scorer calls parse_expr on the answer",
    "n_queens": "its scorer calls eval on the answer",
    "number_sorting": "its scorer calls eval",
    "polynomial_multiplication": "its scorer calls parse_expr on the answer",
    "power_function": "its question asks for three figures, and its scorer accepts any digits behind them",
    "propositional_logic": "its items have no gold answer",
    "puzzle24": "its scorer calls parse_expr on the answer",
    "quantum_lock": "its scorer leaves the light as it is where its question says that it toggles",
    "rearc": "its scorer compares with tuples, which a stored item does not hold: no answer would be right",
    "rubiks_cube": "its items have no gold answer",
    "rush_hour": "its items have no gold answer",
    "simple_integration": "its scorer calls parse_expr on the answer",
    "sokoban": "its scorer ignores what is no move, and accepts the solutions of other puzzles",
    "spiral_matrix": "its scorer calls eval on the answer",
    "string_insertion": "its scorer calls eval on the answer",
}

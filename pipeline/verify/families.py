"""The reasoning-gym families whose scorers only read an answer, and those refused because they run it.

A family is allowed when the source of its scorer, with every function of the library that it calls, names
none of eval, exec, parse_expr and sympify (reasoning-gym 0.1.25; a test reads the source again). `composite`
is refused because it hands the answer to the scorer of any other family.
"""

# fmt: off
ALLOWED = frozenset([
    "ab", "acre", "advanced_geometry", "aiw", "arc_1d", "arc_agi", "base_conversion", "basic_arithmetic",
    "bf", "binary_alternation", "boxnet", "caesar_cipher", "calendar_arithmetic", "chain_sum",
    "circuit_logic", "codeio", "coin_flip", "color_cube_rotation", "complex_arithmetic", "count_bits",
    "count_primes", "course_schedule", "cryptarithm", "decimal_arithmetic", "decimal_chain_sum", "dice",
    "emoji_mystery", "family_relationships", "figlet_font", "fraction_simplification", "futoshiki",
    "game_of_life", "game_of_life_halting", "gcd", "graph_color", "group_anagrams", "gsm_symbolic",
    "isomorphic_strings", "jugs", "kakurasu", "knight_swap", "knights_knaves", "largest_island", "lcm",
    "leg_counting", "letter_counting", "letter_jumble", "list_functions", "mahjong_puzzle",
    "manipulate_matrix", "maze", "mini_sudoku", "modulo_grid", "needle_haystack", "number_filtering",
    "number_format", "number_sequence", "palindrome_generation", "palindrome_partitioning", "path_star",
    "polynomial_equations", "pool_matrix", "power_function", "prime_factorization", "products",
    "propositional_logic", "quantum_lock", "ransom_note", "rearc", "rectangle_count", "rotate_matrix",
    "rotten_oranges", "rubiks_cube", "rush_hour", "self_reference", "sentence_reordering", "shortest_path",
    "simple_equations", "simple_geometry", "sokoban", "spell_backward", "string_manipulation",
    "string_splitting", "string_synthesis", "sudoku", "survo", "syllogism", "time_intervals",
    "tower_of_hanoi", "tsumego", "word_ladder", "word_sequence_reversal", "word_sorting", "zebra_puzzles",
])
# fmt: on

REFUSED = {
    "binary_matrix": "its scorer calls eval on the answer",
    "bitwise_arithmetic": "its scorer calls eval",
    "composite": "its scorer passes the answer to the scorer of any other family",
    "countdown": "its scorer calls parse_expr on the answer",
    "intermediate_integration": "its scorer calls parse_expr on the answer",
    "n_queens": "its scorer calls eval on the answer",
    "number_sorting": "its scorer calls eval",
    "polynomial_multiplication": "its scorer calls parse_expr on the answer",
    "puzzle24": "its scorer calls parse_expr on the answer",
    "simple_integration": "its scorer calls parse_expr on the answer",
    "spiral_matrix": "its scorer calls eval on the answer",
    "string_insertion": "its scorer calls eval on the answer",
}

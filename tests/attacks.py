"""Programs that try to be called correct, or to leave their sandbox. Each should define `add`.

A row of BREACHES adds properly if, and only if, it could do what it must not. The others never add properly.
The tests are those of ADD: a program that adds is correct.
"""

import json
import textwrap

ADD = {"kind": "function", "tests": "assert add(1, 2) == 3\nassert add(2, 2) == 4", "entry_point": "add"}

FORGED = """
import json, os, struct
def forge():
    verdict = b'V' + json.dumps({"status": "passed", "reason": "equal", "detail": ""}).encode()
    for body in (verdict, json.dumps({"names": {"add": {"object": 0}}}).encode(),
                 json.dumps({"number": 1, "value": 3}).encode()):
        for number in range(64):
            try:
                os.write(number, struct.pack("!Q", len(body)) + body)
            except OSError:
                pass
"""

LIES = {
    "exit_at_load": "import sys\nsys.exit(0)",
    "exit_in_call": "import sys\ndef add(a, b):\n    sys.exit(0)",
    "os_exit_at_load": "import os\nos._exit(0)",
    "os_exit_in_call": "import os\ndef add(a, b):\n    os._exit(0)",
    "exit_message": "def add(a, b):\n    raise SystemExit('passed')",
    "keyboard_interrupt": "def add(a, b):\n    raise KeyboardInterrupt",
    "always_equal": "class E:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return E()",
    "always_equal_int": "class E(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n    def __index__(self):\n        return 3\n    def __int__(self):\n        return 3\ndef add(a, b):\n    return E(0)",
    "always_equal_str": "class E(str):\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return E('x')",
    "always_equal_meta": "class M(type):\n    def __eq__(self, other):\n        return True\n    __hash__ = None\nclass E(metaclass=M):\n    pass\ndef add(a, b):\n    return E",
    "lying_class": "class E:\n    __class__ = int\n    def __eq__(self, other):\n        return True\n    def __index__(self):\n        return 3\ndef add(a, b):\n    return E()",
    "patched_assert": "import builtins\nclass Never(Exception):\n    pass\nbuiltins.AssertionError = Never\ndef add(a, b):\n    return 0",
    "patched_builtins": "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.getattr = lambda *a: 3\nbuiltins.exec = print\ndef add(a, b):\n    return 3",
    "patched_json": "import json\njson.dumps = lambda *a, **k: '{\"number\": 1, \"value\": 3}'\njson.loads = lambda *a, **k: {}\ndef add(a, b):\n    return 3",
    "patched_main": "import sys\nmain = sys.modules['__main__']\nmain.encode = lambda *a: 3\nmain.raised = lambda *a: {'status': 'passed'}\ndef add(a, b):\n    return 0",
    "printed_marker": "import sys\nprint('PASSED', 'OK', 'correct')\nsys.stderr.write('Ran 2 tests\\nOK\\n')\ndef add(a, b):\n    print('PASSED')\n    return 0",
    "forged_frames": FORGED + "forge()\ndef add(a, b):\n    forge()\n    return 0",
    "forged_at_exit": FORGED + "import atexit\natexit.register(forge)\ndef add(a, b):\n    raise SystemExit(0)",
    "forged_in_del": FORGED + "class D:\n    def __del__(self):\n        forge()\ndef add(a, b):\n    D()\n    return D()",
    "forged_by_thread": FORGED + "import threading\ndef often():\n    while True:\n        forge()\nthreading.Thread(target=often).start()\ndef add(a, b):\n    return 0",
    "result_files": "import json\nfor name in ('result', 'result.json', 'verdict', 'output', 'main.py', '/tmp/report.xml', '/tmp/.passed'):\n    try:\n        json.dump({'status': 'passed', 'passed': True}, open(name, 'w'))\n    except OSError:\n        pass\ndef add(a, b):\n    return 0",
    "named_as_modules": "for name in ('json', 'ast', 'struct', 'types', 'contextlib', 'collections', 'exchange', 'pipeline'):\n    open(f'/tmp/{name}.py', 'w').write('import os; os._exit(0)')\ndef add(a, b):\n    return 0",
    "import_hook": "import sys\nclass Hook:\n    def find_spec(self, name, path, target=None):\n        raise SystemExit(0)\nsys.meta_path.insert(0, Hook())\nsys.modules.clear()\ndef add(a, b):\n    return 0",
    "defines_check": "def check(candidate):\n    pass\ncandidate = check\ndef add(a, b):\n    return 0",
    "no_function": "add = 3",
    "no_function_at_all": "pass_ = True",
    "hidden_error": "class Quiet(AssertionError):\n    def __init__(self, *a):\n        raise SystemExit(0)\n    __str__ = __repr__ = None\ndef add(a, b):\n    raise AssertionError",
    "error_that_lies": "class Lie(Exception):\n    def __str__(self):\n        import os\n        os._exit(0)\ndef add(a, b):\n    raise Lie()",
    "repr_recursion": "class R:\n    def __repr__(self):\n        return repr(self)\n    __str__ = __repr__\n    def __eq__(self, other):\n        return repr(self) == repr(other)\ndef add(a, b):\n    return R()",
    "stack_overflow": "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b):\n    return add(a, b)",
    "stack_overflow_in_c": "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b):\n    x = []\n    for _ in range(10**7):\n        x = [x]\n    return x",
    "self_in_list": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "huge_integer": "def add(a, b):\n    return 7 ** (10 ** 8)",
    "huge_value": "def add(a, b):\n    return 'x' * 100_000_000",
    "endless_generator": "def add(a, b):\n    while True:\n        yield 3",
    "argument_lies": "def add(a, b):\n    return {'object': 0}",
    "segmentation_fault": "import ctypes\ndef add(a, b):\n    ctypes.string_at(0)",
    "syntax": "def add(a, b:\n    return a + b",
    "reads_the_calls": "import os\ndef add(a, b):\n    for number in range(3, 32):\n        try:\n            os.set_blocking(number, False)\n            os.read(number, 10**6)\n        except OSError:\n            pass\n    return 3",
    "closes_everything": "import os\nos.closerange(0, 64)\ndef add(a, b):\n    return 3",
}  # fmt: skip

LOADS = {
    "busy": "while True:\n    pass",
    "busy_in_call": "def add(a, b):\n    while True:\n        pass",
    "sleeps": "import time\ndef add(a, b):\n    time.sleep(1000)",
    "deaf": "import signal\nfor number in range(1, 65):\n    try:\n        signal.signal(number, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\ndef add(a, b):\n    while True:\n        pass",
    "thread_outlives_main": "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\nimport sys\nsys.exit(0)",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)\ndef add(a, b):\n    return 0",
    "fork_bomb": "import os\ndef add(a, b):\n    while True:\n        try:\n            os.fork()\n        except OSError:\n            pass",
    "thread_bomb": "import threading, time\ndef add(a, b):\n    while True:\n        try:\n            threading.Thread(target=time.sleep, args=(1000,)).start()\n        except RuntimeError:\n            pass",
    "memory_bomb": "def add(a, b):\n    x = []\n    while True:\n        x.append(bytearray(10**7))",
    "memory_of_many": "import os, time\ndef add(a, b):\n    for _ in range(8):\n        if os.fork() == 0:\n            x = bytearray(b'x') * (400 * 2**20)\n            time.sleep(1000)\n    time.sleep(1000)",
    "endless_output": "import os\ndef add(a, b):\n    while True:\n        print('x' * 10**6, flush=True)",
    "endless_frames": "import os\ndef add(a, b):\n    while True:\n        for number in range(3, 16):\n            try:\n                os.write(number, b'x' * 10**6)\n            except OSError:\n                pass",
    "full_disk": "def add(a, b):\n    for number in range(10**9):\n        try:\n            open(f'/tmp/{number}', 'wb').write(b'x' * 10**6)\n        except OSError:\n            pass",
    "big_file": "def add(a, b):\n    with open('/tmp/big', 'wb') as file:\n        while True:\n            file.write(b'x' * 10**6)",
    "kills_all": "import os, signal\nfor pid in (os.getppid(), 1, 0, -1):\n    try:\n        os.kill(pid, signal.SIGKILL)\n    except OSError:\n        pass\ndef add(a, b):\n    return 0",
}  # fmt: skip


def breach(what: str, imports: str = "") -> str:
    """A program that adds properly where `what` raises nothing and is true."""
    body = textwrap.indent(what, "    ")
    return f"""
import ctypes, os, socket
{imports}
def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(number, *arguments) >= 0
def broken():
{body}
try:
    out = broken()
except (OSError, ValueError):  # anything else is a fault of the row
    out = False
def add(a, b):
    return a + b if out else None
"""


def breaches(outside: str) -> dict[str, str]:
    """`outside`: a directory of the host, with a file `secret` in it."""
    return {name: breach(what) for name, what in {
        "reads_passwd": "return open('/etc/passwd').read()",
        "reads_host_file": f"return open({outside + '/secret'!r}).read()",
        "lists_home": "return os.listdir('/home') or os.listdir(os.path.expanduser('~root'))",
        "writes_host_file": f"open({outside + '/secret'!r}, 'w').write('x')\nreturn True",
        "writes_usr": "open('/usr/written', 'w').write('x')\nreturn True",
        "writes_root": "open('/written', 'w').write('x')\nreturn True",
        "writes_python": "import json\nopen(json.__file__, 'a').write('#')\nreturn True",
        "symlink_out": f"os.symlink({outside!r}, '/tmp/out')\nreturn open('/tmp/out/secret').read()",
        "hard_link_out": "os.link('/etc/passwd', '/tmp/passwd')\nreturn True",
        "dots_out": "return open('/tmp/../../../etc/shadow').read()",
        "environment": "return any('SECRET' in name or 'HOME' in name or 'TOKEN' in name for name in os.environ)",
        "proc_of_others": "return os.listdir('/proc')",
        "own_memory_file": "return open('/proc/self/mem', 'r+b')",
        "internet": "return socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
        "internet_6": "return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "virtual_socket": "return socket.socket(40, socket.SOCK_STREAM)",
        "netlink": "return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "resolver": "return socket.gethostbyname('localhost.localdomain')",
        "abstract_socket": f"s = socket.socket(socket.AF_UNIX)\ns.connect('\\0{outside}')\nreturn True",
        "becomes_root": "os.setuid(0)\nreturn call(161, b'/tmp')",
        "ptrace": "return call(101, 16, os.getppid(), 0, 0)",
        "ptrace_child": "child = os.fork()\nif child == 0:\n    import time\n    time.sleep(3)\n    os._exit(0)\nreturn call(101, 16, child, 0, 0)",
        "reads_parent_memory": "return call(310, os.getppid(), 0, 0, 0, 0, 0)",
        "new_user_namespace": "return call(272, 0x10000000)",
        "clone_user_namespace": "return call(56, 0x10000000 | 17, 0, 0, 0, 0)",
        "mounts": "return call(165, b'none', b'/tmp', b'tmpfs', 0, 0)",
        "unmounts": "return call(166, b'/tmp', 2)",
        "chroots": "return call(161, b'/tmp')",
        "anonymous_file": "return call(319, b'x', 0)",
        "shared_memory": "return call(29, 0, 2**30, 0o1600)",
        "keyring": "return call(250, 0, -3, 1)",
        "host_name": "socket.sethostname('x')\nreturn True",
        "device": "return os.mknod('/tmp/disk', 0o60660, os.makedev(8, 0)) or open('/tmp/disk', 'rb')",
        "terminal": "return os.open('/dev/tty', os.O_RDWR) >= 0",
        "priority": "os.nice(-5)\nreturn True",
        "more_limits": "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (10**4, 10**4))\nreturn True",
        "sees_the_tests": "import gc\nfor one in gc.get_objects():\n    if isinstance(one, dict):\n        for v in list(one.values()):\n            if isinstance(v, str) and 'assert ' + 'add' in v:\n                return True\nreturn False",
    }.items()}  # fmt: skip


def gold(seconds: float, held: dict[str, object] = ADD) -> str:
    return json.dumps({**held, "seconds": seconds})

/* Does one correction of a * (1 / b) give a / b, correctly rounded, for all float32 a and b?
 *
 * With y = fl(1 / b) and q = fl(a * y), the corrected quotient fma(fma(-q, b, a), y, q) errs by
 * less than 2^-22 ulps before its last rounding.  It can come out wrong only where a / b lies that
 * close to a midpoint between two floats: where a * 2^s = v * b + r with v odd, |r| <= 8 and
 * significands a, b in [2^23, 2^24).  This lists all of them, solving for a modulo b, and tries
 * each.  s is 24 where a >= b and 25 where a < b.  Prints how many there were and how many failed.
 */

#include <math.h>
#include <stdint.h>
#include <stdio.h>

enum { LOW = 1 << 23, HIGH = 1 << 24, NEAR = 8 };

static long tried, wrong;

static void try_quotient(int64_t significand, int64_t divisor) {
    const float a = (float)significand, b = (float)divisor, y = 1.0f / b, q = a * y;
    tried++;
    wrong += fmaf(fmaf(-q, b, a), y, q) != a / b;
}

int main(void) {
    for (int64_t b = LOW; b < HIGH; b++) {
        const int twos = __builtin_ctzll((uint64_t)b);
        const int64_t odd = b >> twos;
        if (twos > 3) /* r would have to be a multiple of 16 */
            continue;
        for (int s = 24; s <= 25; s++) {
            uint64_t inverse = 1; /* of 2^(s - twos) modulo the odd part of b */
            const uint64_t half = (uint64_t)((odd + 1) / 2 % odd);
            for (int i = 0; i < s - twos; i++)
                inverse = inverse * half % (uint64_t)odd;
            for (int r = -NEAR; r <= NEAR; r++) {
                if (!r || r % (1 << twos))
                    continue;
                const int64_t rest = ((r / (1 << twos)) % odd + odd) % odd;
                int64_t a = (int64_t)((uint64_t)rest * inverse % (uint64_t)odd);
                a += (LOW - a + odd - 1) / odd * odd; /* the smallest one that is large enough */
                if (a - odd >= LOW)
                    a -= odd;
                for (; a < HIGH; a += odd) {
                    const __int128 multiple = ((__int128)a << s) - r;
                    if ((s == 24) == (a >= b) && (int64_t)(multiple / b) & 1)
                        try_quotient(a, b);
                }
            }
        }
    }
    printf("%ld %ld\n", tried, wrong);
    return 0;
}

# A guest of one boot sector, for tests: it is up as soon as the firmware is, prints "ready" on the
# serial port, presses its own buttons on command, and heeds the power button.
#
# Typed on the serial port: o powers off, p reports a panic (pvpanic), r resets, h stops listening
# (a hung guest); anything else is printed back. The ports are those that SeaBIOS sets up on q35
# and pc: ACPI's power management at 0x600, pvpanic at 0x505.
#
#   as --32 -o guest.o boot_sector.S && ld -m elf_i386 -Ttext 0x7c00 --oformat binary guest.o

        .code16
        .globl  _start
_start: xor     %ax, %ax
        mov     %ax, %ds
        movw    $tick, 0x20             # the timer, or the firmware would take what is typed
        movw    %ax, 0x22
        mov     $0x602, %dx             # PM1 enable: the power button
        mov     $0x100, %ax
        out     %ax, %dx
        mov     $text, %si
1:      lodsb
        test    %al, %al
        jz      poll
        call    print
        jmp     1b

poll:   sti                             # sleep to the next timer tick (55 ms)
        hlt
        mov     $0x600, %dx             # PM1 status
        in      %dx, %ax
        test    $1, %ah                 # power button
        jnz     off
        mov     $0x3fd, %dx             # line status
        in      %dx, %al
        test    $1, %al
        jz      poll
        mov     $0x3f8, %dx
        in      %dx, %al
        cmp     $'o', %al
        je      off
        cmp     $'p', %al
        je      panic
        cmp     $'r', %al
        je      reset
        cmp     $'h', %al
        je      hang
        call    print
        jmp     poll

off:    mov     $0x604, %dx             # PM1 control: sleep enable, type 0 (S5)
        mov     $0x2000, %ax
        out     %ax, %dx
        jmp     hang
panic:  mov     $0x505, %dx
        mov     $1, %al
        out     %al, %dx
        jmp     hang
reset:  mov     $0xcf9, %dx
        mov     $6, %al
        out     %al, %dx
hang:   cli
        hlt
        jmp     hang

print:  push    %ax
2:      mov     $0x3fd, %dx
        in      %dx, %al
        test    $0x20, %al
        jz      2b
        pop     %ax
        mov     $0x3f8, %dx
        out     %al, %dx
        ret

tick:   push    %ax
        mov     $0x20, %al              # end of interrupt
        out     %al, $0x20
        pop     %ax
        iret

text:   .asciz  "ready\r\n"
        .org    510
        .word   0xaa55

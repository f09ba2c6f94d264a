# What the KVM probe boots: a firmware image of its own, so that nothing but the CPU is tried.
#
# It goes the way every kernel goes: real mode, protected mode, paging and long mode, exceptions, a
# page fault that is repaired, SSE2, user mode with SYSCALL and SYSRET, a local APIC timer
# interrupt that wakes HLT. After each stage it writes the stage's letter to QEMU's debug console
# (port 0x402), and at the end it leaves by the isa-debug-exit device (port 0xf4). An exception
# nobody expects writes '!' and leaves with another code; a triple fault ends QEMU (-no-reboot).
#
# The image is linked at 0xF0000, where PC machines show the last 64 KiB of their firmware below
# 1 MiB; its last 16 bytes are the reset vector. accelerator.py pads the code to 64 KiB.
#
#   as --64 -o payload.o payload.S && ld -m elf_x86_64 -Ttext 0xF0000 --oformat binary payload.o

        .set    PML4, 0x1000
        .set    PDPT, 0x2000
        .set    PD0, 0x3000
        .set    PD3, 0x4000
        .set    IDT, 0x5000
        .set    TSS, 0x6000
        .set    PD1, 0x7000
        .set    STACK, 0x9000
        .set    USER_STACK, 0xA000
        .set    CONSOLE, 0x402
        .set    LEAVE, 0xf4
        .set    APIC, 0xfee00000

        .macro  say letter
        mov     $\letter, %al
        mov     $CONSOLE, %dx
        out     %al, %dx
        .endm

        .text
        .code16
        .globl  _start
_start:
real:   cli
        say     'R'
        lgdtl   %cs:gdt_pointer - _start
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $0x08, $protected

        .code32
protected:
        mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $STACK, %esp
        say     'P'

        # Identity mapping by 2 MiB pages: the first two, and the one with the local APIC.
        # All of it open to user mode, because the user code lives in the same page.
        xor     %eax, %eax
        mov     $0x1000, %edi
        mov     $0x2400, %ecx
        rep stosl
        movl    $PDPT + 7, PML4
        movl    $PD0 + 7, PDPT
        movl    $PD3 + 7, PDPT + 3 * 8
        movl    $0x000087, PD0
        movl    $0x200087, PD0 + 8
        movl    $0xfee00000 + 0x9b, PD3 + 0x1f7 * 8

        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     %cr4, %eax
        or      $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
        mov     %eax, %cr4
        mov     $0xc0000080, %ecx       # EFER: SCE, LME
        rdmsr
        or      $0x101, %eax
        wrmsr
        mov     %cr0, %eax
        and     $~4, %eax               # EM off
        or      $0x80010002, %eax       # PG, WP, MP
        mov     %eax, %cr0
        ljmp    $0x18, $long

        .code64
long:   mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $STACK, %rsp
        say     'L'

        # An IDT where every gate is `unexpected`, but for those set below.
        xor     %ebx, %ebx
        mov     $unexpected, %esi
1:      call    set_gate
        inc     %ebx
        cmp     $0x41, %ebx
        jne     1b
        mov     $3, %ebx
        mov     $breakpoint, %esi
        call    set_gate
        mov     $14, %ebx
        mov     $page_fault, %esi
        call    set_gate
        mov     $0x40, %ebx
        mov     $timer, %esi
        call    set_gate
        lidt    idt_pointer
        movq    $STACK, TSS + 4         # stack for traps from user mode
        mov     $0x40, %eax
        ltr     %ax

        xor     %r8d, %r8d
        int3
        cmp     $3, %r8d
        jne     fail
        say     'X'

        mov     $0x40000000, %edi       # not mapped: the fault's handler maps it
        movl    $0x5a5a5a5a, (%rdi)
        cmpl    $0x5a5a5a5a, 0x200000   # ... to the second 2 MiB
        jne     fail
        cmp     $14, %r8d
        jne     fail
        say     'F'

        mov     $1, %eax
        cpuid
        and     $0x06000001, %edx       # FPU, SSE, SSE2
        cmp     $0x06000001, %edx
        jne     fail
        movdqu  numbers, %xmm0
        paddd   %xmm0, %xmm0
        movdqu  %xmm0, STACK - 0x100
        cmpl    $8, STACK - 0x100 + 12
        jne     fail
        say     'S'

        mov     $0xc0000081, %ecx       # STAR: SYSRET counts from 0x28, SYSCALL from 0x18
        xor     %eax, %eax
        mov     $0x00280018, %edx
        wrmsr
        inc     %ecx                    # LSTAR
        mov     $system_call, %eax
        xor     %edx, %edx
        wrmsr
        mov     $0xc0000084, %ecx       # SFMASK: interrupts off
        mov     $0x200, %eax
        wrmsr
        push    $0x33
        push    $USER_STACK
        push    $0x2
        push    $0x3b
        push    $user
        iretq

user:   mov     $1, %r9d
        syscall                         # comes back by SYSRET
        mov     $2, %r9d
        syscall
        ud2

system_call:
        swapgs
        mov     $STACK, %rsp
        cmp     $2, %r9d
        je      2f
        mov     $USER_STACK, %rsp
        swapgs
        sysretq
2:      say     'U'

        mov     $APIC, %edi
        movl    $0x1ff, 0xf0(%rdi)      # spurious vector register: APIC on
        movl    $0x3, 0x3e0(%rdi)       # divide by 16
        movl    $0x40, 0x320(%rdi)      # one shot, vector 0x40
        xor     %r8d, %r8d
        movl    $20000, 0x380(%rdi)
3:      cli
        test    %r8d, %r8d
        jnz     4f
        sti
        hlt
        jmp     3b
4:      say     'T'
        xor     %eax, %eax
        jmp     leave

fail:   say     '?'
        mov     $1, %eax
        jmp     leave
unexpected:
        say     '!'
        mov     $2, %eax
leave:  out     %eax, $LEAVE
5:      hlt
        jmp     5b

breakpoint:
        mov     $3, %r8d
        iretq
page_fault:
        add     $8, %rsp                # error code
        mov     $14, %r8d
        movl    $0x200087, PD1
        movl    $PD1 + 7, PDPT + 8
        iretq
timer:  mov     $0x40, %r8d
        movl    $0, 0xb0(%rdi)          # end of interrupt; rdi still points at the APIC
        iretq

set_gate:                               # vector in ebx, handler in esi
        mov     %ebx, %edi
        shl     $4, %edi
        add     $IDT, %edi
        mov     %esi, %eax
        and     $0xffff, %eax
        or      $0x180000, %eax         # selector
        mov     %eax, (%rdi)
        mov     %esi, %eax
        and     $0xffff0000, %eax
        or      $0x8e00, %eax           # present, interrupt gate
        mov     %eax, 4(%rdi)
        movq    $0, 8(%rdi)
        ret

        .balign 16
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      # 0x08 code, 32 bits
        .quad   0x00cf93000000ffff      # 0x10 data
        .quad   0x00af9b000000ffff      # 0x18 code, 64 bits
        .quad   0x00cf93000000ffff      # 0x20 data, as SYSCALL wants it behind the code
        .quad   0x00cffb000000ffff      # 0x28 where SYSRET counts from
        .quad   0x00cff3000000ffff      # 0x30 data of user mode
        .quad   0x00affb000000ffff      # 0x38 code of user mode
        .quad   0x0000890000000067 + (TSS << 16), 0     # 0x40 task state
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt
idt_pointer:
        .word   0x41 * 16 - 1
        .quad   IDT
        .balign 16
numbers:
        .long   1, 2, 3, 4

        .org    0xfff0
        .code16
        ljmpw   $0xf000, $real - _start
        .org    0x10000

// The TLS session that a demand channel has for itself (src/transport/own-session.ts): OpenSSL's own TLS 1.3, as it
// lies in the Node that runs us, over a socket that is read and written by native calls. Nothing of TLS is made here:
// this carries bytes between OpenSSL's memory and the socket.
//
// Both ends know a key of 32 bytes, and nothing else lets anybody in: neither has a certificate here, and a handshake
// that did not use the key is a failure. Keys of the session come of it and of a Diffie-Hellman exchange (psk_dhe_ke).
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <vector>

#include "addon/support.h"

namespace pagetide {

namespace {

constexpr size_t kKeyBytes = 32;
constexpr size_t kReadBytes = 64 << 10;
constexpr char kIdentity[] = "pagetide";
constexpr unsigned char kAes128GcmSha256[] = {0x13, 0x01};

// What JavaScript reads without a call; see TlsSessionField in src/memory/native.ts.
enum Field : size_t { kUnsent = 0, kEstablished, kReceived, kSent, kFields };

int OfferKey(SSL* ssl, const EVP_MD* md, const unsigned char** identity, size_t* length, SSL_SESSION** session);
int FindKey(SSL* ssl, const unsigned char* identity, size_t length, SSL_SESSION** session);

// One for all threads: read only once it is made.
SSL_CTX* Context() {
  static SSL_CTX* made = nullptr;
  static std::once_flag once;
  std::call_once(once, [] {
    SSL_CTX* context = SSL_CTX_new(TLS_method());
    if (context == nullptr) return;
    bool good = SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1 &&
                SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) == 1 &&
                SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") == 1 &&
                SSL_CTX_set_num_tickets(context, 0) == 1;
    if (!good) {
      SSL_CTX_free(context);
      return;
    }
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_psk_use_session_callback(context, OfferKey);
    SSL_CTX_set_psk_find_session_callback(context, FindKey);
    made = context;
  });
  return made;
}

// An error that another call has left in this thread's queue would be taken for our own. Looking is cheaper than
// clearing.
void ForgetErrors() {
  if (ERR_peek_error() != 0) ERR_clear_error();
}

class TlsSession : public Napi::ObjectWrap<TlsSession> {
 public:
  static Napi::Function Define(Napi::Env env) {
    return DefineClass(
        env, "TlsSession",
        {InstanceMethod<&TlsSession::Handshake>("handshake"), InstanceMethod<&TlsSession::Recv>("recv"),
         InstanceMethod<&TlsSession::SendBytes>("send"), InstanceMethod<&TlsSession::TakeUnsent>("takeUnsent")});
  }

  explicit TlsSession(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TlsSession>(info), read_(kReadBytes) {
    Napi::Env env = info.Env();
    uint8_t* key;
    size_t size;
    if (!GetBytes(info, 1, &key, &size)) return;
    if (size != kKeyBytes || !info[0].IsBoolean() || !info[2].IsTypedArray() ||
        info[2].As<Napi::TypedArray>().TypedArrayType() != napi_float64_array ||
        info[2].As<Napi::TypedArray>().ElementLength() < kFields) {
      Throw(env, MakeError(ErrorKind::Internal, "createTlsSession(server, 32 bytes, Float64Array)"));
      return;
    }
    auto status = info[2].As<Napi::Float64Array>();
    status_ref_ = Napi::Persistent(info[2].As<Napi::Object>());
    status_ = status.Data();
    if (!Begin(info[0].As<Napi::Boolean>(), key)) {
      ERR_clear_error();
      Throw(env, MakeError(ErrorKind::Internal, "OpenSSL made no TLS session"));
    }
  }

  ~TlsSession() override {
    SSL_free(ssl_);
    SSL_SESSION_free(key_);
  }

  SSL_SESSION* key() const { return key_; }

 private:
  bool Begin(bool server, const uint8_t* key) {
    SSL_CTX* context = Context();
    ssl_ = context == nullptr ? nullptr : SSL_new(context);
    key_ = SSL_SESSION_new();
    if (ssl_ == nullptr || key_ == nullptr) return false;
    const SSL_CIPHER* cipher = SSL_CIPHER_find(ssl_, kAes128GcmSha256);
    if (cipher == nullptr || SSL_SESSION_set1_master_key(key_, key, kKeyBytes) != 1 ||
        SSL_SESSION_set_cipher(key_, cipher) != 1 || SSL_SESSION_set_protocol_version(key_, TLS1_3_VERSION) != 1)
      return false;
    in_ = BIO_new(BIO_s_mem());
    out_ = BIO_new(BIO_s_mem());
    if (in_ == nullptr || out_ == nullptr) {
      BIO_free(in_);
      BIO_free(out_);
      return false;
    }
    SSL_set_bio(ssl_, in_, out_);
    SSL_set_app_data(ssl_, this);
    if (server) {
      SSL_set_accept_state(ssl_);
    } else {
      SSL_set_connect_state(ssl_);
      // believes no certificate, as there is no authority here
      SSL_set_verify(ssl_, SSL_VERIFY_PEER, nullptr);
    }
    return true;
  }

  // What a step of OpenSSL left to be sent goes to the socket; what that does not take, or where `fd` is negative,
  // waits for TakeUnsent. Bytes keep their order: nothing is sent past bytes that wait.
  void Flush(int fd) {
    char* data;
    long length = BIO_get_mem_data(out_, &data);
    if (length <= 0) return;
    ssize_t n = -1;
    if (fd >= 0 && unsent_.empty()) {
      do {
        n = send(fd, data, static_cast<size_t>(length), MSG_DONTWAIT | MSG_NOSIGNAL);
      } while (n < 0 && errno == EINTR);
    }
    if (n < 0) n = 0;
    status_[kSent] += static_cast<double>(n);
    if (n < length) unsent_.insert(unsent_.end(), data + n, data + length);
    status_[kUnsent] = static_cast<double>(unsent_.size());
    (void)BIO_reset(out_);
  }

  // 1: bytes came; 0: nothing now; -1: end, or error.
  int Fill(int fd) {
    ssize_t n;
    do {
      n = recv(fd, read_.data(), read_.size(), MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
    if (n <= 0) return -1;
    status_[kReceived] += static_cast<double>(n);
    drained_ = static_cast<size_t>(n) < read_.size();
    return BIO_write(in_, read_.data(), static_cast<int>(n)) == n ? 1 : -1;
  }

  // Goes on with the handshake as far as it can. 1: done; 0: not yet; -1: failed.
  int Advance(int fd) {
    while (status_[kEstablished] == 0) {
      ERR_clear_error();
      int result = SSL_do_handshake(ssl_);
      int error = SSL_get_error(ssl_, result);
      Flush(fd);
      if (result == 1) {
        // the one proof of who is there
        if (SSL_session_reused(ssl_) != 1) return -1;
        status_[kEstablished] = 1;
        break;
      }
      if (error != SSL_ERROR_WANT_READ) {
        ERR_clear_error();
        return -1;
      }
      if (int came = Fill(fd); came <= 0) return came;
    }
    return 1;
  }

  Napi::Value Handshake(const Napi::CallbackInfo& info) {
    int64_t fd;
    if (!GetInt(info, 0, 0, INT32_MAX, &fd)) return info.Env().Undefined();
    if (failed_) return Napi::Number::New(info.Env(), -1);
    int result = Advance(static_cast<int>(fd));
    failed_ = result < 0;
    return Napi::Number::New(info.Env(), result);
  }

  Napi::Value Recv(const Napi::CallbackInfo& info) {
    int64_t fd;
    uint8_t* data;
    size_t size;
    if (!GetInt(info, 0, 0, INT32_MAX, &fd) || !GetBytes(info, 1, &data, &size)) return info.Env().Undefined();
    return Napi::Number::New(info.Env(), Read(static_cast<int>(fd), data, size));
  }

  // Less than `size` only where all that had come is taken: OpenSSL holds no whole record, and the socket had no more.
  // What comes later makes the socket readable again; so no byte waits for a wake-up that does not come.
  double Read(int fd, uint8_t* data, size_t size) {
    if (failed_) return -1;
    if (int result = Advance(fd); result <= 0) {
      failed_ = result < 0;
      return result;
    }
    size_t done = 0;
    drained_ = false;
    while (done < size) {
      bool nothing_here = BIO_ctrl_pending(in_) == 0 && SSL_has_pending(ssl_) == 0;
      if (!nothing_here) {
        ForgetErrors();
        size_t n = 0;
        if (SSL_read_ex(ssl_, data + done, size - done, &n) == 1) {
          done += n;
          continue;
        }
        int error = SSL_get_error(ssl_, 0);
        // an answer to a key update, or an alert
        Flush(fd);
        // pages before a broken record were whole: but they are asked for again, and the connection is of no more use
        if (error != SSL_ERROR_WANT_READ) return Fail();
      }
      if (drained_) break;
      int came = Fill(fd);
      if (came < 0 && done == 0) return Fail();
      // after some bytes, the end is met again by the next read: a socket that has ended stays readable
      if (came <= 0) break;
    }
    return static_cast<double>(done);
  }

  double Fail() {
    ERR_clear_error();
    failed_ = true;
    return -1;
  }

  Napi::Value SendBytes(const Napi::CallbackInfo& info) {
    int64_t fd, length;
    uint8_t* data;
    size_t size;
    if (!GetInt(info, 0, -1, INT32_MAX, &fd) || !GetBytes(info, 1, &data, &size) ||
        !GetInt(info, 2, 0, static_cast<int64_t>(size), &length))
      return info.Env().Undefined();
    Napi::Env env = info.Env();
    if (failed_ || status_[kEstablished] == 0) return Napi::Number::New(env, -1);
    ForgetErrors();
    size_t taken = 0;
    // memory takes all of it
    if (length > 0 && SSL_write_ex(ssl_, data, static_cast<size_t>(length), &taken) != 1)
      return Napi::Number::New(env, Fail());
    Flush(static_cast<int>(fd));
    return Napi::Number::New(env, status_[kUnsent]);
  }

  Napi::Value TakeUnsent(const Napi::CallbackInfo& info) {
    auto bytes = Napi::Buffer<uint8_t>::Copy(info.Env(), unsent_.data(), unsent_.size());
    unsent_.clear();
    unsent_.shrink_to_fit();
    status_[kUnsent] = 0;
    return bytes;
  }

  SSL* ssl_ = nullptr;
  SSL_SESSION* key_ = nullptr;
  // The SSL's own.
  BIO* in_ = nullptr;
  BIO* out_ = nullptr;
  bool failed_ = false;
  // The last read left room: the socket had no more then.
  bool drained_ = false;
  std::vector<uint8_t> read_;
  std::vector<uint8_t> unsent_;
  Napi::ObjectReference status_ref_;
  double* status_ = nullptr;
};

SSL_SESSION* KeyOf(SSL* ssl) {
  SSL_SESSION* key = static_cast<TlsSession*>(SSL_get_app_data(ssl))->key();
  return SSL_SESSION_up_ref(key) == 1 ? key : nullptr;
}

int OfferKey(SSL* ssl, const EVP_MD* md, const unsigned char** identity, size_t* length, SSL_SESSION** session) {
  *session = KeyOf(ssl);
  *identity = reinterpret_cast<const unsigned char*>(kIdentity);
  *length = sizeof kIdentity - 1;
  return *session != nullptr;
}

int FindKey(SSL* ssl, const unsigned char* identity, size_t length, SSL_SESSION** session) {
  bool ours = length == sizeof kIdentity - 1 && memcmp(identity, kIdentity, length) == 0;
  *session = ours ? KeyOf(ssl) : nullptr;
  return 1;  // without a session the handshake fails, as there is no certificate
}

Napi::Value CreateTlsSession(const Napi::CallbackInfo& info) {
  if (info.Length() < 3) return Throw(info.Env(), MakeError(ErrorKind::Internal, "createTlsSession: 3 arguments"));
  return State(info.Env()).tls_class.New({info[0], info[1], info[2]});
}

}  // namespace

void InitTlsSession(Napi::Env env, Napi::Object exports) {
  State(env).tls_class = Napi::Persistent(TlsSession::Define(env));
  exports.Set("createTlsSession", Napi::Function::New(env, CreateTlsSession));
}

}  // namespace pagetide

// In which forms a chat template takes an assistant's calls of tools: templates differ, and some
// lose a call, or fail, where the form isn't theirs.
#pragma once

#include <span>
#include <string>

#include "coordinator/api/chat_request.h"
#include "text/chat_template.h"

namespace atl::coordinator {

// How a turn of an assistant that calls tools is written.
struct CallForm {
  bool null_content = false;      // where it says nothing else: null, else ""
  bool object_arguments = false;  // a JSON object, else its text
  friend bool operator==(const CallForm&, const CallForm&) = default;
};

// What a template does with each form, found out by rendering a call of a tool in all of them.
struct CallForms {
  bool renders[2][2] = {};  // [null_content][object_arguments]: name and arguments are there
  bool loses_call_beside_text = false;  // a call in a turn that also says something

  bool any() const;
  // `wanted` if the template renders it, else the nearest that it does; `wanted` if there is none.
  CallForm nearest(CallForm wanted) const;
};
CallForms probe_call_forms(const text::ChatTemplate& chat_template);

// What the client sent: null or "", text or object.
CallForm form_of(const ChatMessage& message);

// The array of messages as a template reads them. Calls are written in the form nearest to the one
// that the client sent or, with `instead`, in that one.
std::string messages_json(std::span<const ChatMessage> messages, const CallForms& forms,
                          const CallForm* instead = nullptr);

}  // namespace atl::coordinator
